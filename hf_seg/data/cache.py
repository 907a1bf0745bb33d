"""Prepared pairs, kept once on the disk and read by memory-mapping: training never waits for decoding twice.

A cache is a folder of .npy files for one split, at one size, or at the pictures' own sizes where training crops. It
is written aside and renamed when it is whole, so that a crash, a full disk or a second launch never leaves one that is
read wrongly.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from datasets import Dataset, DatasetDict
from torch import Tensor

from hf_seg.data.check import check_palettes, check_splits, describe_state, in_memory
from hf_seg.data.crops import DecodedPictures, Pictures, RandomCrops, StoredPictures, WholePairs
from hf_seg.data.pairs import StoredPair, decode_pair, map_pairs, report_pairs
from hf_seg.data.prepared import CachedPairs, PreparedPairs, UncachedPairs
from hf_seg.data.spec import DatasetSpec
from hf_seg.data.stored_image import open_header
from hf_seg.data.transforms import SegTransform
from hf_seg.files import cache_folder, check_writable, one_process
from hf_seg.problem import DataError, PairError, Problem, Refusal, disk_remedy

logger = logging.getLogger(__name__)

VERSION = 1  # of what the arrays hold: another one where `SegTransform.prepare` makes something else of a pair
SHARE = 0.5  # of the free disk space that the caches of a data set may take where `data.cache` is "auto"
REMEDY = "Name another folder in data.cache, or set it to false: every epoch then decodes the pictures again."


def prepare_splits(
    splits: DatasetDict, spec: DatasetSpec, transforms: Mapping[str, SegTransform], cache: bool | str = "auto"
) -> dict[str, PreparedPairs]:
    """Check every pair of a data set, and make the splits ready to be read in batches of prepared pairs.

    Args:
        cache (`bool` or `str`): False: pairs are decoded each time that they are read. True: they are kept below the
            cache folder of hf_seg, or, by name, in a folder of your own. A cache that is there is used; its pairs
            were checked when it was made. `"auto"`: as True, unless the caches that are still to be made would take
            more than half of the free disk space. Generated data is kept in memory.

    Raises:
        DataError: as `check_splits`, for all splits together; or when the cache cannot be written.
    """
    check_palettes(splits, spec)
    folder = None if in_memory(splits) else prepared_folder(cache)
    caches = {
        name: SplitCache(name=name, dataset=split, spec=spec, transform=transforms[name], folder=folder)
        for name, split in splits.items()
    }
    if cache is False or (cache == "auto" and folder and not _fit(caches.values(), folder)):
        check_splits(splits, spec)
        return {name: each.uncached() for name, each in caches.items()}
    problems: list[Problem] = []
    prepared = {name: each.load(problems) for name, each in caches.items()}
    if problems:
        raise report_pairs(spec.name, problems, sum(map(len, splits.values())))
    return prepared


def _fit(caches: Iterable[SplitCache], folder: Path) -> bool:
    """Whether the caches that are still to be made can be written, and take at most `SHARE` of the free disk space;
    else, say so."""
    if not (missing := [each for each in caches if not each.place.exists()]):
        return True
    try:
        existing = check_writable(folder, "so the pictures are decoded again each epoch")
    except Refusal as error:
        logger.warning("%s", error)
        return False
    needed, free = sum(each.bytes for each in missing), shutil.disk_usage(existing).free
    if needed > SHARE * free:
        logger.warning(
            "%s: the prepared pairs would take %.1f GB, more than half of the %.1f GB that are free, so the pictures "
            'are decoded again each epoch. data.cache true keeps them all the same (it is "auto").',
            folder,
            needed / 1e9,
            free / 1e9,
        )
    return needed <= SHARE * free


def prepared_folder(cache: bool | str) -> Path:
    """Where a recipe with this `data.cache` keeps prepared pairs."""
    return cache_folder() / "prepared" if cache in (True, False, "auto") else Path(cache).expanduser()


@dataclass(frozen=True, kw_only=True)
class SplitCache:
    """The cache of one split, there or still to be made."""

    name: str  # of the split
    dataset: Dataset
    spec: DatasetSpec
    transform: SegTransform
    folder: Path | None  # the cache's parent, made if need be; None: in memory only

    @property
    def crops(self) -> bool:
        """Whether pictures keep their own size."""
        return self.transform.resize == "crop"

    @cached_property
    def pixels(self) -> int:
        """Of all its pictures together."""
        if not self.crops:
            return len(self.dataset) * math.prod(self.transform.prepared_size)
        pairs = map_pairs(_count_pixels, {self.name: self.dataset}, desc="Measuring", disable_bar=True)
        return sum(count for _, count in pairs)

    @property
    def bytes(self) -> int:
        return 4 * self.pixels

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        if self.crops:
            return {"pixel_values": (3 * self.pixels,), "labels": (self.pixels,)}
        count, size = len(self.dataset), self.transform.prepared_size
        return {"pixel_values": (count, 3, *size), "labels": (count, *size)}

    @property
    def place(self) -> Path:
        """The cache's own folder, which changes with whatever changes the arrays."""
        # decoders and resizing may round differently from version to version
        height, width = self.transform.prepared_size
        size = "own" if self.crops else f"{width}x{height}"
        if self.transform.resize == "letterbox":
            size += "-letterbox"
        state = describe_state(self.name, self.dataset, self.spec)
        parts = [VERSION, size, PIL.__version__, torchvision.__version__, state]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return self.folder / f"{self.spec.name}-{self.name}-{size}-{key}"

    def uncached(self) -> PreparedPairs:
        """The pairs, decoded each time that they are read."""
        if self.crops:
            return self._crop(DecodedPictures(self.dataset, self.transform))
        return UncachedPairs(self.dataset, self.transform)

    def _crop(self, pictures: Pictures) -> PreparedPairs:
        if self.name != "train":
            return WholePairs(pictures)
        return RandomCrops(pictures, self.transform.size, self.spec.ignore_index)

    def load(self, problems: list[Problem]) -> PreparedPairs | None:
        """Open the cache, or make it, on all cores; with many processes on a machine, one makes it.

        Pairs that cannot be used are added to `problems`; nothing is kept then.

        Raises:
            DataError: when the cache cannot be written.
        """
        if self.folder is None:
            pairs = list(self._prepare_all(problems))
            if not self.crops:
                return CachedPairs(*(torch.cat([pair[key] for pair in pairs]).numpy() for key in self.shapes))
            flat = (torch.cat([pair[key].flatten() for pair in pairs]).numpy() for key in self.shapes)
            return self._crop(StoredPictures(*flat, np.array([pair["labels"].shape[1:] for pair in pairs])))
        place = self.place
        if (cached := self._open(place)) is not None:
            return self._crop(cached) if self.crops else cached
        doing = f"preparing the {self.name} pairs of {self.spec.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with one_process(self.folder / f"{place.name}.lock", doing):
                if (cached := self._open(place)) is None:  # no other process was quicker
                    self._write(place, problems)
                    cached = self._open(place)
            return self._crop(cached) if self.crops and cached else cached
        except OSError as error:
            what = f"the {self.name} pairs of {self.spec.name} cannot be kept there: {error}"
            remedy = f"{disk_remedy(error)} {REMEDY}".lstrip()
            raise DataError(self.folder, what, remedy, code="full-disk") from error

    def find_stale(self) -> list[str]:
        """Decode the pairs again; returns the images of those of which the cache holds other pixels."""
        cached = self._open(self.place)
        if cached is None:
            return []

        def is_stale(pair: StoredPair) -> bool:
            now, then = self._prepare(pair), cached[pair.index]
            return isinstance(now, Problem) or any(not np.array_equal(now[key][0], then[key]) for key in now)

        compared = map_pairs(is_stale, {self.name: self.dataset}, desc="Comparing")
        return [pair.image_name for pair, stale in compared if stale]

    def _open(self, place: Path) -> CachedPairs | StoredPictures | None:
        """The cache; None when it is not there, or, with a warning, when it is not what it should be."""
        if not place.exists():
            return None
        try:
            if self.crops:
                if len(cached := StoredPictures.open(place)) != len(self.dataset):
                    raise ValueError("it holds another number of pairs")
                return cached
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
        prepared = self.transform.prepare({"image": [image], "mask": [mask]})
        if self.crops:  # a window of it is then in few places of the file
            prepared["pixel_values"] = prepared["pixel_values"].permute(0, 2, 3, 1)
        return prepared

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
        needed, free = self.bytes, shutil.disk_usage(place.parent).free
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
                sizes = []
                for prepared in self._prepare_all(problems):
                    sizes.append(prepared["labels"].shape[1:])
                    for key, values in prepared.items():
                        files[key].write(values.contiguous().numpy())
                if self.crops:
                    files["sizes"] = stack.enter_context(open(partial / "sizes.npy", "wb"))
                    np.save(files["sizes"], np.array(sizes))
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
            if len(problems) == before:
                shutil.rmtree(place, ignore_errors=True)  # a damaged one
                os.replace(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _count_pixels(pair: StoredPair) -> int:
    try:
        with open_header(pair.image) as image:
            return image.width * image.height
    except Exception:  # of any kind of damage; decoding it says which
        return 0
