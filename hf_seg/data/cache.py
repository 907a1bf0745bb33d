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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from datasets import Dataset, DatasetDict
from datasets.utils import tqdm
from torch import Tensor

from hf_seg.data.check import check_palettes, check_splits, describe_state, in_memory
from hf_seg.data.pairs import StoredPair, decode_pair, map_pairs, stored_pairs
from hf_seg.data.sources.download import cache_folder, disk_remedy, one_process
from hf_seg.data.spec import DatasetSpec, report_pairs
from hf_seg.problem import DataError, PairError

logger = logging.getLogger(__name__)

VERSION = 1  # of what the arrays hold: another one where `SegTransform.prepare` makes something else of a pair
AT_ONCE = 256  # pairs that are decoded, but not written yet
REMEDY = "Name another folder in data.cache, or set it to false: every epoch then decodes the pictures again."

Prepare = Callable[[dict[str, list[Any]]], dict[str, Tensor]]


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


class UncachedPairs(PreparedPairs):
    """Decodes pairs each time that they are read.

    Args:
        dataset (`Dataset`): columns `image` and `mask`.
        prepare (`Callable`): `SegTransform.prepare`.
    """

    def __init__(self, dataset: Dataset, prepare: Prepare):
        self.dataset, self.prepare = dataset, prepare

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.prepare(self.dataset[list(indices)]) | {"index": torch.as_tensor(indices)}


class CachedPairs(PreparedPairs):
    """Reads pairs from arrays: the rows that are asked for, and nothing else.

    Args:
        pixel_values (uint8 array of shape `(N, 3, size, size)`), labels (uint8 array of shape `(N, size, size)`): in
            memory or memory-mapped.
        folder (`Path`, *optional*): where the arrays are mapped from; a worker process maps them again.
    """

    def __init__(self, pixel_values: np.ndarray, labels: np.ndarray, folder: Path | None = None):
        self.pixel_values, self.labels, self.folder = pixel_values, labels, folder

    @classmethod
    def open(cls, folder: Path) -> CachedPairs:
        """Map the files of a cache.

        Raises:
            OSError, ValueError, EOFError: when they are not there or not whole.
        """
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

    def __reduce__(self):
        # pickled as it is, a memory-mapped array would travel to each worker in full
        return (CachedPairs.open, (self.folder,)) if self.folder else super().__reduce__()


def prepare_splits(
    splits: DatasetDict, spec: DatasetSpec, transforms: Mapping[str, Any], cache: bool | str
) -> dict[str, PreparedPairs]:
    """Check every pair of a data set, and make the splits ready to be read in batches of prepared pairs.

    Args:
        splits (`DatasetDict`): columns `image` and `mask`, as `load_splits` gives them.
        spec (`DatasetSpec`): says which raw values the masks may hold.
        transforms (`Mapping[str, SegTransform]`): of each split; `prepare` and `prepared_size` are used.
        cache (`bool` or `str`): False: pairs are decoded each time that they are read. True: they are kept below the
            cache folder of hf_seg, or, by name, in a folder of your own. A cache that is there is used; its pairs
            were checked when it was made. Generated data is kept in memory.

    Returns:
        `dict`: split → [`PreparedPairs`].

    Raises:
        DataError: as `check_splits`, for all splits together; or when the cache cannot be written.
    """
    check_palettes(splits, spec)
    if cache is False:
        check_splits(splits, spec)
        return {name: UncachedPairs(split, transforms[name].prepare) for name, split in splits.items()}
    folder = None if in_memory(splits) else prepared_folder(cache)
    prepared, errors = {}, []
    for name, split in splits.items():
        result = cache_split(
            name, split, spec, prepare=transforms[name].prepare, size=transforms[name].prepared_size, folder=folder
        )
        if isinstance(result, CachedPairs):
            prepared[name] = result
        else:
            errors += result
    if errors:
        raise report_pairs(spec.name, errors, sum(map(len, splits.values())))
    return prepared


def prepared_folder(cache: bool | str) -> Path:
    """Where a recipe with this `data.cache` keeps prepared pairs."""
    return cache_folder() / "prepared" if cache is True else Path(cache).expanduser()


def cache_split(
    name: str, dataset: Dataset, spec: DatasetSpec, *, prepare: Prepare, size: int, folder: Path | None
) -> CachedPairs | list[PairError]:
    """Open the cache of a split, or make it, on all cores; with many processes on a machine, one makes it.

    Args:
        name (`str`): of the split.
        dataset (`Dataset`): columns `image` and `mask`.
        spec (`DatasetSpec`): as for `decode_pair`.
        prepare (`Callable`): `SegTransform.prepare`; its arrays have `size` pixels a side.
        size (`int`): see there.
        folder (`Path`, *optional*): the cache's parent folder, made if need be. None: in memory only.

    Returns:
        [`CachedPairs`]; or, when pairs cannot be used, what is wrong with each of these: nothing is kept then.

    Raises:
        DataError: when the cache cannot be written.
    """
    shapes = {"pixel_values": (len(dataset), 3, size, size), "labels": (len(dataset), size, size)}
    errors: list[PairError] = []
    batches = _prepared(name, dataset, spec, prepare, errors, quiet=folder is None)
    if folder is None:
        arrays = _collect(batches, shapes)
        return errors or CachedPairs(**arrays)
    place = _place(folder, name, dataset, spec, size)
    cached = _open(place, shapes)
    if cached is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with one_process(folder / f"{place.name}.lock", f"preparing the {name} pairs of {spec.name}"):
                cached = _open(place, shapes)  # another process may have been quicker
                if cached is None:
                    _write(place, batches, shapes, errors)
        except OSError as error:
            remedy = f"{disk_remedy(error)} {REMEDY}".lstrip()
            raise DataError(
                f"{folder}: the {name} pairs of {spec.name} cannot be kept there: {error}. {remedy}"
            ) from error
    return cached or errors or CachedPairs.open(place)


def find_stale(
    name: str,
    dataset: Dataset,
    spec: DatasetSpec,
    *,
    prepare: Prepare,
    size: int,
    folder: Path,
    disable_bar: bool | None = False,
) -> tuple[Path, list[str]]:
    """Decode a split again, and compare it with its cache.

    Args:
        name, dataset, spec, prepare, size, folder: as for `cache_split`.
        disable_bar (`bool`, *optional*): as tqdm's `disable`.

    Returns:
        `tuple`: where the cache is, or would be, and the images of the pairs of which it holds other pixels.
    """
    place = _place(folder, name, dataset, spec, size)
    cached = _open(place, {"pixel_values": (len(dataset), 3, size, size), "labels": (len(dataset), size, size)})
    if cached is None:
        return place, []

    def is_stale(pair: StoredPair) -> bool:
        now, then = _prepare_pair(pair, dataset, spec, prepare), cached[pair.index]
        return isinstance(now, PairError) or any(not torch.equal(now[key][0], then[key]) for key in now)

    compared = map_pairs(is_stale, {name: dataset}, desc=f"Comparing {place.name}", disable_bar=disable_bar)
    return place, [pair.image_name for pair, stale in compared if stale]


def _place(folder: Path, name: str, dataset: Dataset, spec: DatasetSpec, size: int) -> Path:
    """The folder of a cache, which changes with whatever changes the arrays."""
    # decoders and resizing may round differently from version to version
    parts = [VERSION, size, PIL.__version__, torchvision.__version__, describe_state(name, dataset, spec)]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return folder / f"{spec.name}-{name}-{size}-{key}"


def _open(place: Path, shapes: dict[str, tuple[int, ...]]) -> CachedPairs | None:
    """The cache in a folder; None when it is not there, or, with a warning, when it is not what it should be."""
    try:
        cached = CachedPairs.open(place)
        arrays = {key: getattr(cached, key) for key in shapes}
        if all(arrays[key].shape == shape and arrays[key].dtype == np.uint8 for key, shape in shapes.items()):
            return cached
        problem = "its arrays are others"
    except FileNotFoundError:
        if not place.exists():
            return None
        problem = "a file is missing"
    except (OSError, ValueError, EOFError) as error:
        problem = str(error)
    logger.warning("%s: the cache is damaged (%s) and is made again.", place, problem)
    return None


def _prepare_pair(
    pair: StoredPair, dataset: Dataset, spec: DatasetSpec, prepare: Prepare
) -> dict[str, Tensor] | PairError:
    try:
        image, mask = decode_pair(pair, dataset.features, spec)
    except PairError as error:
        return error
    return prepare({"image": [image], "mask": [mask]})


def _prepared(
    name: str, dataset: Dataset, spec: DatasetSpec, prepare: Prepare, errors: list[PairError], *, quiet: bool
) -> Iterator[dict[str, Tensor]]:
    """Decode, check and resize a split's pairs, in order; what cannot be used is left out, and added to `errors`."""

    def work(pair: StoredPair) -> dict[str, Tensor] | PairError:
        return _prepare_pair(pair, dataset, spec, prepare)

    bar = tqdm(desc=f"Preparing {spec.name} {name}", total=len(dataset), unit=" pairs", disable=quiet)
    pairs = stored_pairs(name, dataset)
    threads = torch.get_num_threads()
    # Pillow's decoders let go of the interpreter lock, so threads use all cores and nothing has to be copied. Each of
    # them would share its resizing out among as many threads again.
    alone = {"initializer": torch.set_num_threads, "initargs": (1,)}
    try:
        with ThreadPoolExecutor(os.cpu_count(), **alone) as pool, bar:
            while some := list(islice(pairs, AT_ONCE)):
                done = list(pool.map(work, some))
                errors += [result for result in done if isinstance(result, PairError)]
                good = [result for result in done if not isinstance(result, PairError)]
                if good:
                    yield {key: torch.cat([result[key] for result in good]) for key in good[0]}
                bar.update(len(some))
    finally:
        torch.set_num_threads(threads)  # what a thread sets holds for all that start later


def _collect(batches: Iterator[dict[str, Tensor]], shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    arrays = {key: np.empty(shape, np.uint8) for key, shape in shapes.items()}
    start = 0
    for batch in batches:
        for key, values in batch.items():
            arrays[key][start : start + len(values)] = values
        start += len(batch["labels"])
    return arrays


def _write(
    place: Path, batches: Iterator[dict[str, Tensor]], shapes: dict[str, tuple[int, ...]], errors: list[PairError]
) -> None:
    """Write a cache, whole or not at all: not at all, too, when a pair cannot be used."""
    needed, free = sum(map(math.prod, shapes.values())), shutil.disk_usage(place.parent).free
    if needed > free:
        raise OSError(f"they take {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free")
    partial = place.with_name(f"{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        with ExitStack() as stack:
            # Not through a memory map: on a full disk, that would kill the process instead of raising an error.
            files = {key: stack.enter_context(open(partial / f"{key}.npy", "wb")) for key in shapes}
            for key, shape in shapes.items():
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(files[key], header)
            for batch in batches:
                for key, values in batch.items():
                    files[key].write(values.contiguous().numpy())
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        if not errors:
            shutil.rmtree(place, ignore_errors=True)  # a damaged one
            os.replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
