"""`split.json`: which pair of a person's own folder is train, validation or test; drawn once, the same ever after."""

from __future__ import annotations

import json
import os
from pathlib import Path

from hf_seg.data.spec import DataError
from hf_seg.recipe_files import parse_json

FILE_NAME = "split.json"
REMEDY = "Correct it, or delete it: a new split is drawn then."


def load_split(root: Path) -> dict[str, list[str]] | None:
    """Read `root/split.json`; None when there is none.

    Returns:
        `dict[str, list[str]]`: `train`, `validation` and `test`, each with names of pairs, a path below `images`
        without suffix.

    Raises:
        DataError: when the file cannot be read, or is not three lists of names that are each there once.
    """
    path = root / FILE_NAME
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}. {REMEDY}") from None
    lists = {"train", "validation", "test"}
    if not isinstance(content, dict) or set(content) - {"seed"} != lists:
        raise DataError(f"{path}: must hold train, validation and test, and seed if you like. {REMEDY}")
    for split in lists:
        names = content[split]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path}: {split} must be a list of names, and not empty. {REMEDY}")
    split = {name: content[name] for name in ("train", "validation", "test")}
    seen: set[str] = set()
    for name in (name for part in split.values() for name in part):
        if name in seen:
            raise DataError(f'{path}: "{name}" stands there twice; a pair belongs to one split. {REMEDY}')
        seen.add(name)
    return split


def save_split(root: Path, split: dict[str, list[str]], *, seed: int) -> None:
    """Write `root/split.json`, whole or not at all. Many processes may do so at once: all of them write the same.

    Raises:
        DataError: when the folder cannot be written to.
    """
    path = root / FILE_NAME
    partial = root / f".{FILE_NAME}.{os.getpid()}"
    try:
        partial.write_text(json.dumps({"seed": seed, **split}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path}: the split cannot be saved ({error.strerror}), and unsaved it could change from run to run. Make "
            "the folder writable, or sort the pairs into train/, validation/ and test/."
        ) from None
