"""`split.json`: which pairs of your own data are train, validation or test; drawn once, and kept from then on."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_seg.files import parse_json, write_text
from hf_seg.problem import DataError

FILE_NAME = "split.json"
SPLITS = ("train", "validation", "test")
# names of splits, in lower case, for folders, files and splits of tables
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SPLIT_SEED = 0
REMEDY = "Correct it, or delete it; then a new split is drawn."
UNLABELLED = (
    'With data.on_bad_pair "drop", a validation or test split without any mask is replaced by a part of train.'
)


def join_names(names: Iterable[str]) -> str:
    """Join names to `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def find_splits(place: str, names: Iterable[str]) -> dict[str, str]:
    """Find the names (of folders, files or splits of a table) of train, validation and test; others are ignored.

    Returns:
        `dict[str, str]`: `train`, and `validation` and `test` if they exist → the name.

    Raises:
        DataError: when two names mean the same split, or none means train.
    """
    names = list(names)
    found: dict[str, str] = {}
    for name in names:
        split = SPLIT_WORDS.get(name.lower())
        if split in found:
            raise DataError(place, f"which is the {split} split, {found[split]} or {name}?", "Rename one of them.")
        if split:
            found[split] = name
    if "train" not in found:
        remedy = "Name the training split train; missing validation and test splits are drawn from it."
        raise DataError(place, f"has no split named train, only {', '.join(names)}", remedy)
    return {split: found[split] for split in SPLITS if split in found}


def split_word(folder: str) -> str:
    """Return a folder's name without numbers and "set" around it: `train` for `train2017`, `01_train`, `train_set`."""
    return re.fullmatch(r"(?:\d+[-_])?(.*?)(?:[-_]?(?:\d+|set))?", folder.lower())[1]


def draw_split(names: Sequence[Any], held_out: Sequence[str]) -> dict[str, list[Any]]:
    """Draw 10 % (at least one) for each of `held_out` at random, with a fixed seed; `train` is the rest. All sorted.

    Args:
        names (`Sequence`): the names of the pairs, in the same order every time.
    """
    shuffled = list(names)
    random.Random(SPLIT_SEED).shuffle(shuffled)
    size = max(1, round(len(names) / 10))
    drawn = {split: sorted(shuffled[n * size : (n + 1) * size]) for n, split in enumerate(held_out)}
    return {"train": sorted(shuffled[len(held_out) * size :])} | drawn


def check_enough(place: str | Path, count: int, held_out: Sequence[str]) -> None:
    """Raise a DataError if drawing `held_out` from `count` pairs would leave none for train."""
    if count <= len(held_out):
        splits, needed = join_names(("train", *held_out)), len(held_out) + 1
        what = f"{count} pairs cannot be split into {splits}: at least {needed} are needed"
        raise DataError(place, what, "Add pairs.", code="split")


def draw_folders(names: Collection[str], held_out: Sequence[str]) -> dict[str, list[str]] | None:
    """Draw as `draw_split`, but whole folders: the smallest ones are held out, until each split has 10 % of the pairs.
    None if less than half of the pairs would be left for train."""
    folders: dict[str, list[str]] = {}
    for name in sorted(names):
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    smallest = sorted(folders.values(), key=len, reverse=True)
    drawn: dict[str, list[str]] = {split: [] for split in held_out}
    for split in held_out:
        while smallest and len(drawn[split]) < len(names) / 10:
            drawn[split] += smallest.pop()
    train = sorted(name for folder in smallest for name in folder)
    return {"train": train} | drawn if 2 * len(train) >= len(names) else None


def load_split(root: Path, wanted: Sequence[str] = SPLITS) -> dict[str, list[str]] | None:
    """Read `root/split.json`, which must contain each name once; None if there is no such file.

    Args:
        wanted (`Sequence[str]`): the splits that it must contain: all three, or those without a folder.

    Returns:
        `dict[str, list[str]]`: each of `wanted` → names of pairs (a path below `images` without suffix) in Unicode's
        form NFC.
    """
    content = _read(root)
    if content is None:
        return None
    if not isinstance(content, dict) or set(content) - {"seed"} != set(wanted):
        raise _fault(root, f"must hold {join_names(wanted)}, and optionally seed")
    _check_lists(root, content, wanted, str, "names")
    return {part: [unicodedata.normalize("NFC", name) for name in content[part]] for part in wanted}


def lists_all(root: Path) -> bool:
    """Whether `root/split.json` lists all three splits; then the names of folders do not count."""
    content = _read(root)
    return isinstance(content, dict) and set(SPLITS) <= content.keys()


def load_row_split(root: Path) -> dict[str, Any] | None:
    """Read `root/split.json` of a table; None if there is no such file.

    Returns:
        `dict`: `train_rows`, the number of rows that train had; `content`, a hash of their pictures' sizes;
        `held_out`, `validation`, `test` or both → the numbers of the rows that were taken out of train.
    """
    content = _read(root)
    if content is None:
        return None
    keys = set(content) - {"seed", *SPLITS[1:]} if isinstance(content, dict) else set()
    if keys != {"train_rows", "content"}:
        keys = "train_rows, content, and the row numbers of validation, test or both"
        raise _fault(root, f"must hold {keys}, because this data set is a table")
    parts = [split for split in SPLITS[1:] if split in content]
    _check_lists(root, content, parts, int, "row numbers")
    rows, held_out = content["train_rows"], {split: content[split] for split in parts}
    if type(rows) is not int or any(not 0 <= row < rows for part in held_out.values() for row in part):
        raise _fault(root, "row numbers must be at least 0 and below train_rows")
    return {"train_rows": rows, "content": content["content"], "held_out": held_out}


def save_split(root: Path, content: dict[str, Any], otherwise: str) -> None:
    """Write `root/split.json`. Several processes may do so at once: all write the same content.

    Args:
        content (`dict`): the content of the file, without the seed.
        otherwise (`str`): a remedy, in case the folder cannot be made writable.
    """
    text = json.dumps({"seed": SPLIT_SEED, **content}, indent=1, ensure_ascii=False)
    try:
        write_text(f"{text}\n", root / FILE_NAME)
    except OSError as error:
        what = f"the split cannot be saved ({error.strerror}), and without the file it could change from run to run"
        remedy = f"Make the folder writable, or {otherwise}."
        raise DataError(root / FILE_NAME, what, remedy, code="split") from None


def _fault(root: Path, what: str) -> DataError:
    return DataError(root / FILE_NAME, what, REMEDY, code="split")


def _read(root: Path) -> Any:
    try:
        return parse_json((root / FILE_NAME).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _fault(root, f"cannot be read: {error}") from None


def _check_lists(root: Path, content: dict[str, Any], parts: Iterable[str], kind: type, words: str) -> None:
    seen: set[Any] = set()
    for part in parts:
        names = content[part]
        if not isinstance(names, list) or not names or not all(type(name) is kind for name in names):
            raise _fault(root, f"{part} must be a non-empty list of {words}")
        for name in names:
            if name in seen:
                raise _fault(root, f"{json.dumps(name)} is given twice; a pair belongs to one split")
            seen.add(name)
