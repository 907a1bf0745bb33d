"""Check every image and mask once, before anything expensive starts; and identify the data by a fingerprint."""

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
    "Programs that make a palette for each file (pngquant, GIMP, “save for web”) give an index a different colour in "
    "each file. Give the classes by their colours in classes.json (`hf-seg init` finds them if there is none), or "
    "save all masks with one palette."
)


def fingerprint(splits: Mapping[str, Dataset]) -> str:
    """Identify the data of a run: the same files give the same fingerprint, in any folder and on any machine.

    It covers the names of the splits and, in order, each file's path below the common folder of all files and its size
    in bytes. Of pictures in a table and of generated ones, it covers the encoded bytes. Files are not read.

    Returns:
        `str`: the first 16 hex digits of a SHA-256.
    """
    # two passes, so that only some rows are in memory at a time
    pictures = (stored for pair in stored_pairs(splits) for stored in (pair.image, pair.mask))
    # where `init` drew masks into another folder, images may have absolute paths and masks relative ones
    folders = {os.path.dirname(os.path.abspath(stored["path"])) for stored in pictures if is_file(stored)}
    root = os.path.commonpath(folders) if folders else ""

    def describe(path: str) -> list:
        return [Path(os.path.abspath(path)).relative_to(root).as_posix(), _stat(path)[0]]

    return _hash_pairs(splits, describe)[:16]


def _hash_pairs(splits: Mapping[str, Dataset], describe_file: Callable[[str], list]) -> str:
    """SHA-256 of all pairs, in order: of `describe_file(path)` for files, of the encoded bytes otherwise."""
    digest = hashlib.sha256()
    for pair in stored_pairs(splits):
        for stored in (pair.image, pair.mask):
            file = is_file(stored)
            content = describe_file(stored["path"]) if file else hashlib.sha256(stored["bytes"]).hexdigest()
            digest.update(json.dumps([pair.name, content]).encode())
    return digest.hexdigest()


def check_splits(splits: DatasetDict, spec: DatasetSpec) -> None:
    """Check every image and mask, in parallel. A data set of files that passed is not checked again on this machine.

    Raises:
        DataError: when a file cannot be decoded, an image and its mask differ in size, a mask does not have exactly
            one 8-bit channel, or a mask holds a value outside the label table.
    """

    def check() -> None:
        if bad := _find_bad_pairs(splits, spec):
            raise report_pairs(spec.name, [problem for _, _, problem in bad], sum(map(len, splits.values())))

    _remembered(splits, spec, ".good", check)


def drop_bad_pairs(splits: DatasetDict, spec: DatasetSpec) -> tuple[DatasetDict, list[Problem]]:
    """Leave out every pair that `check_splits` would refuse; return the other pairs, and what is wrong with those left
    out. The result is remembered, so that all processes leave out the same pairs."""

    def find() -> list[tuple[str, int, dict[str, str]]]:
        return [(split, row, dataclasses.asdict(problem)) for split, row, problem in _find_bad_pairs(splits, spec)]

    bad = _remembered(splits, spec, ".bad-pairs", find)
    good = {}
    for name, dataset in splits.items():
        left_out = {row for split, row, _ in bad if split == name}
        good[name] = dataset.select([row for row in range(len(dataset)) if row not in left_out])
    return DatasetDict(good), [Problem(**problem) for _, _, problem in bad]


def _find_bad_pairs(splits: DatasetDict, spec: DatasetSpec) -> list[tuple[str, int, Problem]]:
    """Decode every pair, on all cores; return split, row and problem of each pair that cannot be used."""

    def check(pair: StoredPair) -> Problem | None:
        try:
            decode_pair(pair, splits[pair.split].features, spec)
        except PairError as error:
            return error.problem
        return None

    checked = map_pairs(check, splits, desc=f"Checking {spec.name}", disable_bar=in_memory(splits))
    return [(pair.split, pair.index, problem) for pair, problem in checked if problem]


def check_palettes(splits: DatasetDict, spec: DatasetSpec) -> None:
    """Raise a PairError if palette indices are read as ids but palettes differ; remembered as in `check_splits`."""

    def compare() -> None:
        if error := find_other_palette(splits):
            raise error

    if reads_ids(splits):
        _remembered(splits, spec, ".palettes", compare)


def reads_ids(splits: Mapping[str, Dataset]) -> bool:
    """Whether the masks are decoded by a `classes.json` that gives the classes as ids."""
    columns = [dataset.features["mask"] for dataset in splits.values()]
    return any(isinstance(column, ClassMask) and not column.by_color for column in columns)


def find_other_palette(splits: Mapping[str, Dataset]) -> PairError | None:
    """Find two masks whose palettes give different colours to an index that both use; return an error that names them.

    First, only the headers are read: if all palettes are the same, as is usual, no mask is decoded.
    """
    desc = "Comparing palettes"
    if len({palette for _, palette in map_pairs(_stored_palette, splits, desc=desc)} - {None}) < 2:
        return None
    seen: dict[int, tuple[int, str]] = {}  # index → its colour in the first mask that uses it, and that mask
    for pair, colors in map_pairs(_used_colors, splits, desc=desc):
        for index, color in colors.items():
            first, file = seen.setdefault(index, (color, pair.mask_name))
            if color != first:
                here, there = as_text(color, True), as_text(first, True)
                reason = f"index {index} of the mask's palette is {here}, but {there} in {file}"
                return PairError(pair.mask_name, reason, OTHER_PALETTE, code="mask-palettes")
    return None


def _stored_palette(pair: StoredPair) -> tuple[str, bytes] | None:
    with suppress(Exception), open_header(pair.mask) as mask:  # of a damaged file: decoding will report it
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
    """Return the JSON value of `make()`; it is stored on disk, and used again while the data set is unchanged."""
    if in_memory(splits):
        return make()  # generated data has no file names and times to recognise it by, and is checked quickly
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
    """Whether the data was generated: its pictures are bytes in memory, not files and not in memory-mapped tables."""
    first = ((split, next(stored_pairs({name: split}), None)) for name, split in splits.items())
    return any(pair is not None and not is_file(pair.image) and not split.cache_files for split, pair in first)


def describe_state(name: str, dataset: Dataset, spec: DatasetSpec) -> str:
    """Hash a split to 64 hex digits, which change when a file, the way of decoding it or the label table changes.

    Files, also those of a memory-mapped table, are identified by path, size and times of change; generated pictures
    by their bytes.
    """
    first = next(stored_pairs({name: dataset}), None)
    if first is not None and not is_file(first.image) and dataset.cache_files:
        # the split may contain only some rows of the files, so the rows are part of the hash
        files = [[file["filename"], *_stat(file["filename"])] for file in dataset.cache_files]
        content = [files, dataset.select_columns("origin")[:]["origin"]]
    else:
        content = _hash_pairs({name: dataset}, lambda path: [os.path.abspath(path), *_stat(path)])
    decoding = [spec.name, spec.label_table, str(dataset.features)]
    return hashlib.sha256(json.dumps([decoding, content]).encode()).hexdigest()


def _stat(path: str) -> tuple[int, int, int]:
    """Return size in bytes, mtime and ctime in ns; each is -1 for a missing file, which decoding will report.

    Programs that restore the mtime of a file (cp -p, rsync -t, unzip) cannot set its ctime.
    """
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
