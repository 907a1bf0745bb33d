"""Looking at every image and mask once, before anything expensive starts; and naming the data that was used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict

from hf_seg.data.pairs import StoredPair, decode_pair, is_file, map_pairs, stored_pairs
from hf_seg.data.palettes import find_other_palette, reads_ids
from hf_seg.data.sources.download import cache_folder, one_process
from hf_seg.data.spec import DatasetSpec, report_pairs
from hf_seg.problem import PairError

logger = logging.getLogger(__name__)


def fingerprint(splits: DatasetDict) -> str:
    """Name the data of a run: the same files give the same fingerprint, wherever and on whichever machine they lie.

    It covers the names of the splits and, in order, each file's name below the folder that holds all of them and its
    size in bytes, or, for generated data, the encoded bytes themselves. Files are not read.

    Args:
        splits (`DatasetDict`): columns `image` and `mask`, as `load_splits` gives them.

    Returns:
        `str`: 16 hex digits, the beginning of a SHA-256.
    """
    # two passes, so that no more than some rows are in memory at once
    files = (stored["path"] for pair in _all_pairs(splits) for stored in (pair.image, pair.mask) if is_file(stored))
    folders = {os.path.dirname(file) for file in files}
    root = os.path.commonpath(folders) if folders else ""
    digest = hashlib.sha256()
    for pair in _all_pairs(splits):
        for stored in (pair.image, pair.mask):
            if is_file(stored):
                size, *_ = _stat(stored["path"])
                content = [Path(stored["path"]).relative_to(root).as_posix(), size]
            else:
                content = hashlib.sha256(stored["bytes"]).hexdigest()
            digest.update(json.dumps([pair.name, content]).encode())
    return digest.hexdigest()[:16]


def check_splits(splits: DatasetDict, spec: DatasetSpec) -> None:
    """Check every image and mask, in parallel; a data set of files that passed is remembered on this machine.

    Args:
        splits (`DatasetDict`): columns `image` and `mask`, as `load_splits` gives them.
        spec (`DatasetSpec`): says which raw values the masks may hold.

    Raises:
        DataError: when a file cannot be decoded, an image and its mask differ in size, a mask has not one 8-bit
            channel, or a mask holds a value outside the label table. Names up to ten pairs and counts them all.
    """

    def check() -> str:
        errors = find_bad_pairs(splits, spec)
        if errors:
            raise report_pairs(spec.name, [error for _, error in errors], sum(map(len, splits.values())))
        return ""

    _remembered(splits, spec, "", check)


def drop_bad_pairs(splits: DatasetDict, spec: DatasetSpec) -> tuple[DatasetDict, list[PairError]]:
    """Leave out every pair that `check_splits` would refuse; remembered, so that all processes leave out the same.

    Returns:
        `tuple`: the splits without these pairs, and what is wrong with each.
    """

    def look() -> str:
        errors = find_bad_pairs(splits, spec)
        return json.dumps(
            [
                [pair.split, pair.index, error.problem.place, error.problem.what, error.problem.remedy]
                for pair, error in errors
            ]
        )

    errors = json.loads(_remembered(splits, spec, ".bad", look))
    good = without(splits, {(split, index) for split, index, *_ in errors})
    return good, [PairError(*error) for _, _, *error in errors]


def without(splits: DatasetDict, bad: set[tuple[str, int]]) -> DatasetDict:
    """The splits without some pairs, which are named by split and position."""
    good = {
        split: dataset.select([index for index in range(len(dataset)) if (split, index) not in bad])
        for split, dataset in splits.items()
    }
    return DatasetDict(good)


def find_bad_pairs(splits: DatasetDict, spec: DatasetSpec) -> list[tuple[StoredPair, PairError]]:
    """Decode every pair, on all cores; returns those that cannot be used, each with what is wrong with it."""

    def look(pair: StoredPair) -> PairError | None:
        try:
            decode_pair(pair, splits[pair.split].features, spec)
        except PairError as error:
            return error
        return None

    checked = map_pairs(look, splits, desc=f"Checking {spec.name}", disable_bar=in_memory(splits))
    return [(pair, error) for pair, error in checked if error]


def check_palettes(splits: DatasetDict, spec: DatasetSpec) -> None:
    """Refuse to read the indices of palettes as ids where palettes differ; remembered, as in `check_splits`.

    Raises:
        PairError: names two such masks.
    """

    def compare() -> str:
        if error := find_other_palette(splits):
            raise error
        return ""

    if reads_ids(splits):
        _remembered(splits, spec, ".palettes", compare)


def _remembered(splits: DatasetDict, spec: DatasetSpec, suffix: str, make: Callable[[], str]) -> str:
    """The text that `make` gives for a data set of files, made once on this machine unless it raises."""
    if in_memory(splits):
        return make()  # generated data has no name and date to be remembered by, and is quick to look at
    folder = cache_folder() / "checked"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.debug("%s", error)
    if not os.access(folder, os.W_OK):
        logger.warning("%s is not writable: the next run has to check %s again.", folder, spec.name)
        return make()
    digest = hashlib.sha256("".join(describe_state(name, split, spec) for name, split in splits.items()).encode())
    memory = folder / f"{digest.hexdigest()}{suffix}"
    if not memory.exists():
        with one_process(memory.with_name(f"{memory.name}.lock"), f"checking the images and masks of {spec.name}"):
            if not memory.exists():  # another process was quicker
                partial = memory.with_name(f"{memory.name}.partial")
                partial.write_text(make(), encoding="utf-8")
                os.replace(partial, memory)
    return memory.read_text(encoding="utf-8")


def in_memory(splits: DatasetDict) -> bool:
    """Whether the data was generated: its pictures are bytes in memory, and neither files nor in mapped tables."""
    first = ((split, next(stored_pairs(name, split), None)) for name, split in splits.items())
    return any(pair is not None and not is_file(pair.image) and not split.cache_files for split, pair in first)


def describe_state(name: str, dataset: Dataset, spec: DatasetSpec) -> str:
    """A hash of a split that changes when a file, the way of decoding it or the label table does.

    Args:
        name (`str`): of the split.
        dataset (`Dataset`): columns `image` and `mask`.
        spec (`DatasetSpec`): gives the label table.

    Returns:
        `str`: 64 hex digits. Files count by path, size and times of change, and so do the files of a mapped table;
        generated pictures by their bytes.
    """
    digest = hashlib.sha256(json.dumps([spec.name, spec.label_table, str(dataset.features)]).encode())
    first = next(stored_pairs(name, dataset), None)
    if first is not None and not is_file(first.image) and dataset.cache_files:
        # rows may have been left out since, so that the files alone do not say which these are
        files = [[file["filename"], *_stat(file["filename"])] for file in dataset.cache_files]
        digest.update(json.dumps([files, dataset.select_columns("origin")[:]["origin"]]).encode())
        return digest.hexdigest()
    for pair in stored_pairs(name, dataset):
        for stored in (pair.image, pair.mask):
            if is_file(stored):
                content = [os.path.abspath(stored["path"]), *_stat(stored["path"])]
            else:
                content = hashlib.sha256(stored["bytes"]).hexdigest()
            digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def _all_pairs(splits: DatasetDict) -> Iterator[StoredPair]:
    for name, split in splits.items():
        yield from stored_pairs(name, split)


def _stat(path: str) -> tuple[int, int, int]:
    """Size in bytes, and times of change in ns; -1 for what is not there, which decoding will report by name.

    The second one is the inode's, which a program that restores the first one (cp -p, rsync -t, unzip) cannot set.
    """
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
