"""Find the files below a folder, also in linked folders; every path that cannot be used is reported."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from hf_seg.problem import DataError, Problem

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
LINKS = "Each link must lead to a file, or to a folder that does not contain the link. Correct or remove it."
RENAME = "Rename such files and folders, an image and its mask in the same way: names must be valid UTF-8."
READABLE = "Make it readable, or remove it."
# kind of JSON with shapes → the keys by which it is recognised
ANNOTATIONS = {"coco": (b'"images"', b'"annotations"', b'"categories"'), "labelme": (b'"shapes"', b'"imagePath"')}


def is_utf8(path: str | os.PathLike) -> bool:
    """Whether a path is valid UTF-8: Python reads other bytes as lone surrogates, which no file can store."""
    return not any("\ud800" <= character <= "\udfff" for character in os.fspath(path))


def find_files(folder: Path, ending: str | tuple[str, ...] = "") -> tuple[list[Path], list[Problem]]:
    """List all files below a folder, or those whose names have an ending. Links are followed; names that begin with a
    dot are left out.

    Returns:
        `tuple`: the files, sorted; and a problem for each broken or circular link, folder that cannot be read, name
        that is not UTF-8, and device or similar.
    """
    files: list[Path] = []
    problems: list[Problem] = []

    def stop(path: Path, what: str, remedy: str, code: str = "unreachable") -> None:
        problems.append(Problem(code=code, place=str(path), what=what, remedy=remedy))

    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in above:
                stop(place, "is a link to a folder that contains it", LINKS)
                continue
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            stop(place, f"cannot be read: {error.strerror}", READABLE)
            continue
        is_run = not {"run.json", "results.json"}.isdisjoint(entry.name for entry in entries)
        for entry in entries:
            if entry.name.startswith(".") or (is_run and entry.name == "plots"):  # written by a run or an evaluation
                continue
            is_folder = _leads_there(entry.is_dir)
            if not (is_folder or entry.name.endswith(ending)):
                continue
            path = place / entry.name
            if not is_utf8(entry.name):
                stop(path, "the name is not UTF-8", RENAME, code="file-name")
            elif is_folder:
                waiting.append((path, above | {(status.st_dev, status.st_ino)}))
            elif _leads_there(entry.is_file):
                files.append(path)
            elif entry.is_symlink():
                stop(path, "is a broken link", LINKS)
            else:
                stop(path, "is neither a file nor a folder", "Remove it.")
    return sorted(files), sorted(problems, key=lambda problem: problem.place)


def find_annotations(root: Path, kind: str, limit: int | None = None, since: int = 0) -> Iterator[Path]:
    """Yield the JSON files of a kind in a folder and below. `limit`: files to read per folder; `since`: in ns, when
    they must have changed last (ctime) or later."""
    read: Counter[Path] = Counter()
    for file in find_files(root, ".json")[0]:
        try:
            if file.stat().st_ctime_ns < since or read[file.parent] == limit:
                continue
            read[file.parent] += 1
            content = file.read_bytes()
        except OSError as error:
            raise DataError(file, f"cannot be read: {error.strerror}", READABLE) from None
        if all(mark in content for mark in ANNOTATIONS[kind]):
            yield file


def _leads_there(check: Callable[[], bool]) -> bool:
    """Return `is_dir()` or `is_file()` of an entry; False if it raises, as for a link to itself or through a file."""
    try:
        return check()
    except OSError:
        return False
