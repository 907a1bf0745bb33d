"""Validating every image and mask once, before anything expensive starts; and naming the data that was used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, DatasetDict

from hf_seg.data.columns import ClassMask, as_text, has_colors
from hf_seg.data.pairs import StoredPair, decode_pair, is_file, map_pairs, report_pairs, stored_pairs
from hf_seg.data.spec import DatasetSpec
from hf_seg.data.stored_image import open_header, open_mask
from hf_seg.files import cache_folder, one_process, write_text
from hf_seg.problem import PairError, Problem

logger = logging.getLogger(__name__)

OTHER_PALETTE = (
    "Programs that make a palette for each file (pngquant, GIMP, “save for web”) give an index another meaning in "
    "each: in classes.json, give the classes by their colours (without one, `hf-seg init` finds them); or save all "
    "masks with one palette."
)


def fingerprint(splits: Mapping[str, Dataset]) -> str:
    """Name the data of a run: the same files give the same fingerprint, wherever and on whichever machine they lie.

    It covers the names of the splits and, in order, each file's name below the folder that holds all of them and its
    size in bytes, or, for generated data, the encoded bytes themselves. Files are not read.

    Returns:
        `str`: 16 hex digits, the beginning of a SHA-256.
    """
    # two passes, so that no more than some rows are in memory at once
    pictures = (stored for pair in stored_pairs(splits) for stored in (pair.image, pair.mask))
    # of what `init` draws elsewhere, photographs may have absolute paths and masks relative ones
    folders = {os.path.dirname(os.path.abspath(stored["path"])) for stored in pictures if is_file(stored)}
    root = os.path.commonpath(folders) if folders else ""

    def describe(path: str) -> list:
        return [Path(os.path.abspath(path)).relative_to(root).as_posix(), _stat(path)[0]]

    return _hash_pairs(splits, describe)[:16]


def _hash_pairs(splits: Mapping[str, Dataset], describe_file: Callable[[str], list]) -> str:
    """A SHA-256 of all pairs, in order: of files, what the function says of a path; else, the encoded bytes."""
    digest = hashlib.sha256()
    for pair in stored_pairs(splits):
        for stored in (pair.image, pair.mask):
            file = is_file(stored)
            content = describe_file(stored["path"]) if file else hashlib.sha256(stored["bytes"]).hexdigest()
            digest.update(json.dumps([pair.name, content]).encode())
    return digest.hexdigest()


def check_splits(splits: DatasetDict, spec: DatasetSpec) -> None:
    """Check every image and mask, in parallel; a data set of files that passed is remembered on this machine.

    Raises:
        DataError: when a file cannot be decoded, an image and its mask differ in size, a mask has not one 8-bit
            channel, or a mask holds a value outside the label table.
    """

    def check() -> None:
        if bad := _find_bad_pairs(splits, spec):
            raise report_pairs(spec.name, [problem for _, _, problem in bad], sum(map(len, splits.values())))

    _remembered(splits, spec, ".good", check)


def drop_bad_pairs(splits: DatasetDict, spec: DatasetSpec) -> tuple[DatasetDict, list[Problem]]:
    """Leave out every pair that `check_splits` would refuse, and say what is wrong with each; remembered, so that all
    processes leave out the same."""

    def find() -> list[tuple[str, int, dict[str, str]]]:
        return [(split, row, dataclasses.asdict(problem)) for split, row, problem in _find_bad_pairs(splits, spec)]

    bad = _remembered(splits, spec, ".bad-pairs", find)
    good = {}
    for name, dataset in splits.items():
        left_out = {row for split, row, _ in bad if split == name}
        good[name] = dataset.select([row for row in range(len(dataset)) if row not in left_out])
    return DatasetDict(good), [Problem(**problem) for _, _, problem in bad]


def _find_bad_pairs(splits: DatasetDict, spec: DatasetSpec) -> list[tuple[str, int, Problem]]:
    """Decode every pair, on all cores; returns split and row of those that cannot be used, and what is wrong."""

    def check(pair: StoredPair) -> Problem | None:
        try:
            decode_pair(pair, splits[pair.split].features, spec)
        except PairError as error:
            return error.problem
        return None

    checked = map_pairs(check, splits, desc=f"Checking {spec.name}", disable_bar=in_memory(splits))
    return [(pair.split, pair.index, problem) for pair, problem in checked if problem]


def check_palettes(splits: DatasetDict, spec: DatasetSpec) -> None:
    """Refuse to read the indices of palettes as ids where palettes differ; remembered, as in `check_splits`."""

    def compare() -> None:
        if error := find_other_palette(splits):
            raise error

    if reads_ids(splits):
        _remembered(splits, spec, ".palettes", compare)


def reads_ids(splits: Mapping[str, Dataset]) -> bool:
    """Whether the masks are decoded by `classes.json`, and it gives ids."""
    columns = [dataset.features["mask"] for dataset in splits.values()]
    return any(isinstance(column, ClassMask) and not column.by_color for column in columns)


def find_other_palette(splits: Mapping[str, Dataset]) -> PairError | None:
    """Find two masks whose palettes give different colours to an index that both hold; the error names both.

    The headers are read; where all palettes are the same, as mostly, no mask is decoded.
    """
    desc = "Comparing palettes"
    if len({palette for _, palette in map_pairs(_stored_palette, splits, desc=desc)} - {None}) < 2:
        return None
    seen: dict[int, tuple[int, str]] = {}  # index → the colour that it has first, and in which file
    for pair, colors in map_pairs(_used_colors, splits, desc=desc):
        for index, color in colors.items():
            first, file = seen.setdefault(index, (color, pair.mask_name))
            if color != first:
                here, there = as_text(color, True), as_text(first, True)
                reason = f"index {index} of the mask's palette is {here}, but {there} in {file}"
                return PairError(pair.mask_name, reason, OTHER_PALETTE, code="mask-palettes")
    return None


def _stored_palette(pair: StoredPair) -> tuple[str, bytes] | None:
    with suppress(Exception), open_header(pair.mask) as mask:  # of a damaged file, which decoding reports
        if _has_palette(mask):
            return mask.palette.rawmode, bytes(mask.palette.palette)
    return None


def _used_colors(pair: StoredPair) -> dict[int, int]:
    with suppress(PairError), open_mask(pair.mask) as mask:
        if _has_palette(mask):
            palette, counts = mask.getpalette(), mask.getchannel(0).histogram()
            used = [index for index in range(len(palette) // 3) if counts[index]]
            return {index: int.from_bytes(palette[3 * index : 3 * index + 3]) for index in used}
    return {}


def _has_palette(mask: PIL.Image.Image) -> bool:
    return mask.mode in ("P", "PA") and not has_colors(mask)


def _remembered(splits: DatasetDict, spec: DatasetSpec, suffix: str, make: Callable[[], Any]) -> Any:
    """The JSON value that `make` gives for a data set of files, made once on this machine unless it raises."""
    if in_memory(splits):
        return make()  # generated data has no name and date to be remembered by, and is checked quickly
    folder = cache_folder() / "checked"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        logger.warning("%s is not writable: the next run has to check %s again.", folder, spec.name)
        return make()
    digest = hashlib.sha256("".join(describe_state(name, split, spec) for name, split in splits.items()).encode())
    memory = folder / f"{digest.hexdigest()}{suffix}"
    with one_process(memory.with_name(f"{memory.name}.lock"), f"checking the images and masks of {spec.name}"):
        if not memory.exists():
            write_text(json.dumps(make()), memory)
    return json.loads(memory.read_text(encoding="utf-8"))


def in_memory(splits: Mapping[str, Dataset]) -> bool:
    """Whether the data was generated: its pictures are bytes in memory, and neither files nor in mapped tables."""
    first = ((split, next(stored_pairs({name: split}), None)) for name, split in splits.items())
    return any(pair is not None and not is_file(pair.image) and not split.cache_files for split, pair in first)


def describe_state(name: str, dataset: Dataset, spec: DatasetSpec) -> str:
    """A hash of a split, 64 hex digits, that changes when a file, the way of decoding it or the label table does.

    Files count by path, size and times of change, and so do the files of a mapped table; generated pictures by their
    bytes.
    """
    first = next(stored_pairs({name: dataset}), None)
    if first is not None and not is_file(first.image) and dataset.cache_files:
        # rows may have been left out since, so that the files alone do not say which these are
        files = [[file["filename"], *_stat(file["filename"])] for file in dataset.cache_files]
        content = [files, dataset.select_columns("origin")[:]["origin"]]
    else:
        content = _hash_pairs({name: dataset}, lambda path: [os.path.abspath(path), *_stat(path)])
    decoding = [spec.name, spec.label_table, str(dataset.features)]
    return hashlib.sha256(json.dumps([decoding, content]).encode()).hexdigest()


def _stat(path: str) -> tuple[int, int, int]:
    """Size in bytes, and times of change in ns; -1 for what is not there, which decoding will report by name.

    The second one is the inode's, which a program that restores the first one (cp -p, rsync -t, unzip) cannot set.
    """
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
