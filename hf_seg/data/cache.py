"""Cache prepared pairs on disk and read them by memory-mapping, so that training waits for decoding only once.

A cache is a folder of .npy files for one split, at one size, or at the pictures' own sizes for `data.resize` "crop".
It is written under another name and renamed when complete, so that a crash, a full disk or a second launch never
leaves an incomplete cache under the final name.
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
from hf_seg.data.crops import RandomCrops, StoredPictures
from hf_seg.data.pairs import StoredPair, decode_pair, map_pairs, report_pairs
from hf_seg.data.prepared import CachedPairs, PreparedPairs, UncachedPairs
from hf_seg.data.spec import DatasetSpec
from hf_seg.data.stored_image import open_header
from hf_seg.data.transforms import SegTransform
from hf_seg.files import cache_folder, check_writable, one_process
from hf_seg.problem import DataError, Level, PairError, Problem, Refusal, disk_remedy

logger = logging.getLogger(__name__)

VERSION = 1  # of the arrays' content; change it when `SegTransform.prepare` returns something else for a pair
SHARE = 0.5  # of the free disk space: the most that a data set's caches may take with `data.cache` "auto"
REMEDY = "Name another folder in data.cache, or set it to false: every epoch then decodes the pictures again."


def prepare_splits(
    splits: DatasetDict, spec: DatasetSpec, transforms: Mapping[str, SegTransform], cache: bool | str = "auto"
) -> dict[str, PreparedPairs]:
    """Check every pair of a data set, and return its splits as datasets of prepared pairs.

    Args:
        cache (`bool` or `str`): False: pairs are decoded each time they are read. True: they are cached in the cache
            folder of hf_seg; a path: in that folder. An existing cache is used; its pairs were checked when it was
            written. `"auto"`: like True, but False if the missing caches cannot be written or would take more than
            half of the free disk space. Generated data is kept in memory, unless False.

    Raises:
        DataError: as `check_splits`, for all splits together; or when the cache cannot be written.
    """
    check_palettes(splits, spec)
    folder = None if in_memory(splits) else prepared_folder(cache)
    caches = {
        name: SplitCache(name=name, dataset=split, spec=spec, transform=transforms[name], folder=folder)
        for name, split in splits.items()
    }
    obstacle = find_obstacle(caches.values(), folder, "warning") if cache == "auto" and folder else None
    if obstacle:
        logger.warning("%s", obstacle)
    if cache is False or obstacle:
        check_splits(splits, spec)
        return {name: each.uncached() for name, each in caches.items()}
    problems: list[Problem] = []
    prepared = {name: each.load(problems) for name, each in caches.items()}
    if problems:
        raise report_pairs(spec.name, problems, sum(map(len, splits.values())))
    return prepared


def find_obstacle(caches: Iterable[SplitCache], folder: Path, level: Level) -> Problem | None:
    """Find out why the missing caches cannot be written to `folder`, which need not exist yet. At the level "warning",
    for `data.cache` "auto", they may take at most `SHARE` of the free disk space."""
    if not (missing := [each for each in caches if not each.place.exists()]):
        return None
    share, limit, otherwise = 1, "more than", ""
    if level == "warning":
        share, limit, otherwise = SHARE, "more than half of", " Otherwise the pictures are decoded again each epoch."
    try:
        existing = check_writable(folder)
    except Refusal as refusal:
        (fault,) = refusal.problems
        code, what = "unwritable-folder", f"is the folder for the resized pairs, but {fault.place} {fault.what}"
        remedy = "Make it writable, or name another folder in data.cache or HF_HOME."
    else:
        needed, free = sum(each.bytes for each in missing), shutil.disk_usage(existing).free
        if needed <= share * free:
            return None
        code, what = "full-disk", f"the resized pairs need {needed / 1e9:.1f} GB, {limit} the {free / 1e9:.1f} GB free"
        remedy = "Free disk space, or name another folder in data.cache."
    return Problem(level=level, code=code, place=str(folder), what=what, remedy=remedy + otherwise)


def prepared_folder(cache: bool | str) -> Path:
    """Return the folder in which a recipe with this `data.cache` keeps prepared pairs."""
    return cache_folder() / "prepared" if cache in (True, False, "auto") else Path(cache).expanduser()


@dataclass(frozen=True, kw_only=True)
class SplitCache:
    """The cache of one split, which may not exist yet."""

    name: str  # of the split
    dataset: Dataset
    spec: DatasetSpec
    transform: SegTransform
    folder: Path | None  # parent of the cache's folder, created if missing; None: in memory only

    @property
    def crops(self) -> bool:
        """Whether pictures keep their own size."""
        return self.transform.resize == "crop"

    @cached_property
    def pixels(self) -> int:
        """The number of pixels of all pictures together."""
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
        """The cache's own folder; its name depends on everything that affects the arrays."""
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
        """Return the pairs without a cache: they are decoded each time they are read."""
        return self._crop(UncachedPairs(self.dataset, self.transform))

    def _crop(self, pairs: PreparedPairs | None) -> PreparedPairs | None:
        """Windows of the pairs, where training crops them."""
        if pairs is None or not self.crops or self.name != "train":
            return pairs
        return RandomCrops(pairs, self.transform.size, self.spec.ignore_index)

    def load(self, problems: list[Problem]) -> PreparedPairs | None:
        """Open the cache, or create it, on all cores; of several processes on a machine, only one creates it.

        Problems of pairs that cannot be used are added to `problems`; then no cache is kept.

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
            return self._crop(cached)
        doing = f"preparing the {self.name} pairs of {self.spec.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with one_process(self.folder / f"{place.name}.lock", doing):
                if (cached := self._open(place)) is None:  # no other process has created it meanwhile
                    self._write(place, problems)
                    cached = self._open(place)
            return self._crop(cached)
        except OSError as error:
            what = f"the {self.name} pairs of {self.spec.name} cannot be stored there: {error}"
            remedy = f"{disk_remedy(error)} {REMEDY}".lstrip()
            raise DataError(self.folder, what, remedy, code="full-disk") from error

    def find_stale(self) -> list[str]:
        """Decode the pairs again; return the image names of those whose pixels differ from the cache."""
        cached = self._open(self.place)
        if cached is None:
            return []

        def is_stale(pair: StoredPair) -> bool:
            now, then = self._prepare(pair), cached[pair.index]
            return isinstance(now, Problem) or any(not np.array_equal(now[key][0], then[key]) for key in now)

        compared = map_pairs(is_stale, {self.name: self.dataset}, desc="Comparing")
        return [pair.image_name for pair, stale in compared if stale]

    def _open(self, place: Path) -> CachedPairs | StoredPictures | None:
        """Open the cache; return None if it does not exist or, with a warning, if it is damaged."""
        if not place.exists():
            return None
        try:
            if self.crops:
                if len(cached := StoredPictures.open(place)) != len(self.dataset):
                    raise ValueError("it holds a different number of pairs")
                return cached
            cached = CachedPairs.open(place)
            for key, shape in self.shapes.items():
                if getattr(cached, key).shape != shape or getattr(cached, key).dtype != np.uint8:
                    raise ValueError(f"{key}.npy holds a different array")
            return cached
        except (OSError, ValueError, EOFError) as error:
            logger.warning("%s: the cache is damaged (%s) and will be made again.", place, error)
            return None

    def _prepare(self, pair: StoredPair) -> dict[str, Tensor] | Problem:
        try:
            image, mask = decode_pair(pair, self.dataset.features, self.spec)
        except PairError as error:
            return error.problem
        return self.transform.prepare({"image": [image], "mask": [mask]})

    def _prepare_all(self, problems: list[Problem]) -> Iterator[dict[str, Tensor]]:
        """Yield good pairs in order, decoded, checked and resized, as batches of one; the others go to `problems`."""
        desc, threads = f"Preparing {self.spec.name} {self.name}", torch.get_num_threads()
        torch.set_num_threads(1)  # else each thread of `map_pairs` would start as many threads again to resize
        try:
            pairs = map_pairs(self._prepare, {self.name: self.dataset}, desc=desc, disable_bar=self.folder is None)
            for _, prepared in pairs:
                if isinstance(prepared, Problem):
                    problems.append(prepared)
                    continue
                if self.crops:  # a window of it is then in few places of the file
                    prepared["pixel_values"] = prepared["pixel_values"].permute(0, 2, 3, 1)
                yield prepared
        finally:
            torch.set_num_threads(threads)

    def _write(self, place: Path, problems: list[Problem]) -> None:
        """Write the cache completely or, also when a pair cannot be used, not at all."""
        needed, free = self.bytes, shutil.disk_usage(place.parent).free
        if needed > free:
            raise OSError(f"they take {needed / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are free")
        partial = place.with_name(f"{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
        partial.mkdir()
        before = len(problems)
        try:
            with ExitStack() as stack:
                # Not memory-mapped: on a full disk, that would kill the process instead of raising an error.
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
                shutil.rmtree(place, ignore_errors=True)  # a damaged cache, if any
                os.replace(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _count_pixels(pair: StoredPair) -> int:
    try:
        with open_header(pair.image) as image:
            return image.width * image.height
    except Exception:  # any kind of damage; decoding reports it
        return 0
