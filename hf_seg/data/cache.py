"""Resized pairs, kept once on the disk and read by memory-mapping: training never waits for decoding twice.

A cache is a folder with two .npy files for one split at one size. It is written aside and renamed when it is whole, so
that a crash, a full disk or a second launch never leaves one that is read wrongly.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from datasets import Dataset, DatasetDict
from torch import Tensor

from hf_seg.data.check import check_palettes, check_splits, describe_state, in_memory
from hf_seg.data.pairs import StoredPair, decode_pair, map_pairs, report_pairs
from hf_seg.data.spec import DatasetSpec
from hf_seg.data.transforms import SegTransform
from hf_seg.files import cache_folder, disk_remedy, one_process
from hf_seg.problem import DataError, PairError, Problem

logger = logging.getLogger(__name__)

VERSION = 1  # of what the arrays hold: another one where `SegTransform.prepare` makes something else of a pair
REMEDY = "Name another folder in data.cache, or set it to false: every epoch then decodes the pictures again."


class PreparedPairs(torch.utils.data.Dataset):
    """The pairs of one split as `SegTransform.prepare` makes them, read a whole batch at a time."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch, as torch's loaders ask for it.

        Returns:
            `dict`: `pixel_values`, uint8 of shape `(batch, 3, size, size)`; `labels`, uint8 of shape
            `(batch, size, size)`; `index`, int64 of shape `(batch,)`: the positions asked for.
        """
        raise NotImplementedError

    def count_labels(self) -> np.ndarray:
        """Pixels of each label, 255 included, in all masks as they are prepared: int64 of shape `(256,)`."""
        raise NotImplementedError


class UncachedPairs(PreparedPairs):
    """Decodes pairs each time that they are read."""

    def __init__(self, dataset: Dataset, transform: SegTransform):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.transform.prepare(self.dataset[list(indices)]) | {"index": torch.as_tensor(indices)}

    def count_labels(self) -> np.ndarray:
        decode = self.dataset.features["mask"].decode_example

        def count(pair: StoredPair) -> np.ndarray:
            return np.bincount(self.transform.prepare_mask(decode(pair.mask)).ravel(), minlength=256)

        counted = map_pairs(count, {"train": self.dataset}, desc="Counting the pixels of each class", disable_bar=None)
        return sum(counts for _, counts in counted)


class CachedPairs(PreparedPairs):
    """Reads pairs from arrays, in memory or mapped from a folder: the rows that are asked for, and nothing else."""

    def __init__(self, pixel_values: np.ndarray, labels: np.ndarray, folder: Path | None = None):
        self.pixel_values, self.labels, self.folder = pixel_values, labels, folder

    @classmethod
    def open(cls, folder: Path) -> CachedPairs:
        """Map the files of a cache; raises OSError, ValueError or EOFError when they are not there or not whole."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pixel_values", "labels")), folder)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = np.asarray(indices)
        return {
            "pixel_values": torch.from_numpy(self.pixel_values[rows]),
            "labels": torch.from_numpy(self.labels[rows]),
            "index": torch.from_numpy(rows),
        }

    def count_labels(self) -> np.ndarray:
        parts = (self.labels[start : start + 64] for start in range(0, len(self), 64))  # bincount makes 8 bytes of 1
        return sum(np.bincount(part.ravel(), minlength=256) for part in parts)

    def __reduce__(self):
        # pickled as it is, a memory-mapped array would travel to each worker in full
        return (CachedPairs.open, (self.folder,)) if self.folder else super().__reduce__()


def prepare_splits(
    splits: DatasetDict, spec: DatasetSpec, transforms: Mapping[str, SegTransform], cache: bool | str
) -> dict[str, PreparedPairs]:
    """Check every pair of a data set, and make the splits ready to be read in batches of prepared pairs.

    Args:
        cache (`bool` or `str`): False: pairs are decoded each time that they are read. True: they are kept below the
            cache folder of hf_seg, or, by name, in a folder of your own. A cache that is there is used; its pairs
            were checked when it was made. Generated data is kept in memory.

    Raises:
        DataError: as `check_splits`, for all splits together; or when the cache cannot be written.
    """
    check_palettes(splits, spec)
    if cache is False:
        check_splits(splits, spec)
        return {name: UncachedPairs(split, transforms[name]) for name, split in splits.items()}
    folder = None if in_memory(splits) else prepared_folder(cache)
    problems: list[Problem] = []
    prepared = {}
    for name, split in splits.items():
        of_split = SplitCache(name=name, dataset=split, spec=spec, transform=transforms[name], folder=folder)
        prepared[name] = of_split.load(problems)
    if problems:
        raise report_pairs(spec.name, problems, sum(map(len, splits.values())))
    return prepared


def prepared_folder(cache: bool | str) -> Path:
    """Where a recipe with this `data.cache` keeps prepared pairs."""
    return cache_folder() / "prepared" if cache is True else Path(cache).expanduser()


@dataclass(frozen=True, kw_only=True)
class SplitCache:
    """The cache of one split, there or still to be made."""

    name: str  # of the split
    dataset: Dataset
    spec: DatasetSpec
    transform: SegTransform
    folder: Path | None  # the cache's parent, made if need be; None: in memory only

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        count, size = len(self.dataset), self.transform.prepared_size
        return {"pixel_values": (count, 3, size, size), "labels": (count, size, size)}

    @property
    def place(self) -> Path:
        """The cache's own folder, which changes with whatever changes the arrays."""
        # decoders and resizing may round differently from version to version
        size, state = self.transform.prepared_size, describe_state(self.name, self.dataset, self.spec)
        parts = [VERSION, size, PIL.__version__, torchvision.__version__, state]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return self.folder / f"{self.spec.name}-{self.name}-{size}-{key}"

    def load(self, problems: list[Problem]) -> CachedPairs | None:
        """Open the cache, or make it, on all cores; with many processes on a machine, one makes it.

        Pairs that cannot be used are added to `problems`; nothing is kept then.

        Raises:
            DataError: when the cache cannot be written.
        """
        if self.folder is None:
            arrays = {key: np.empty(shape, np.uint8) for key, shape in self.shapes.items()}
            for row, prepared in enumerate(self._prepare_all(problems)):
                for key, values in prepared.items():
                    arrays[key][row] = values[0]
            return CachedPairs(**arrays)
        place = self.place
        if (cached := self._open(place)) is not None:
            return cached
        doing = f"preparing the {self.name} pairs of {self.spec.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with one_process(self.folder / f"{place.name}.lock", doing):
                if (cached := self._open(place)) is None:  # no other process was quicker
                    self._write(place, problems)
                    cached = self._open(place)
            return cached
        except OSError as error:
            what = f"the {self.name} pairs of {self.spec.name} cannot be kept there: {error}"
            remedy = f"{disk_remedy(error)} {REMEDY}".lstrip()
            raise DataError(self.folder, what, remedy, code="full-disk") from error

    def find_stale(self, disable_bar: bool | None = False) -> list[str]:
        """Decode the pairs again; returns the images of those of which the cache holds other pixels."""
        cached = self._open(self.place)
        if cached is None:
            return []

        def is_stale(pair: StoredPair) -> bool:
            now, then = self._prepare(pair), cached[pair.index]
            return isinstance(now, Problem) or any(not torch.equal(now[key][0], then[key]) for key in now)

        compared = map_pairs(is_stale, {self.name: self.dataset}, desc="Comparing", disable_bar=disable_bar)
        return [pair.image_name for pair, stale in compared if stale]

    def _open(self, place: Path) -> CachedPairs | None:
        """The cache; None when it is not there, or, with a warning, when it is not what it should be."""
        if not place.exists():
            return None
        try:
            cached = CachedPairs.open(place)
            for key, shape in self.shapes.items():
                if getattr(cached, key).shape != shape or getattr(cached, key).dtype != np.uint8:
                    raise ValueError(f"{key}.npy holds another array")
            return cached
        except (OSError, ValueError, EOFError) as error:
            logger.warning("%s: the cache is damaged (%s) and is made again.", place, error)
            return None

    def _prepare(self, pair: StoredPair) -> dict[str, Tensor] | Problem:
        try:
            image, mask = decode_pair(pair, self.dataset.features, self.spec)
        except PairError as error:
            return error.problem
        return self.transform.prepare({"image": [image], "mask": [mask]})

    def _prepare_all(self, problems: list[Problem]) -> Iterator[dict[str, Tensor]]:
        """Every pair in order, decoded, checked and resized, in batches of one; problems are added to the list."""
        desc, threads = f"Preparing {self.spec.name} {self.name}", torch.get_num_threads()
        torch.set_num_threads(1)  # each thread of the pass would share its resizing out among as many threads again
        try:
            pairs = map_pairs(self._prepare, {self.name: self.dataset}, desc=desc, disable_bar=self.folder is None)
            for _, prepared in pairs:
                if isinstance(prepared, Problem):
                    problems.append(prepared)
                else:
                    yield prepared
        finally:
            torch.set_num_threads(threads)

    def _write(self, place: Path, problems: list[Problem]) -> None:
        """Write the cache, whole or not at all: not at all, too, when a pair cannot be used."""
        needed, free = sum(map(math.prod, self.shapes.values())), shutil.disk_usage(place.parent).free
        if needed > free:
            raise OSError(f"they take {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")
        partial = place.with_name(f"{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        before = len(problems)
        try:
            with ExitStack() as stack:
                # Not through a memory map: on a full disk, that would kill the process instead of raising an error.
                files = {key: stack.enter_context(open(partial / f"{key}.npy", "wb")) for key in self.shapes}
                for key, shape in self.shapes.items():
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(files[key], header)
                for prepared in self._prepare_all(problems):
                    for key, values in prepared.items():
                        files[key].write(values.contiguous().numpy())
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
            if len(problems) == before:
                shutil.rmtree(place, ignore_errors=True)  # a damaged one
                os.replace(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
