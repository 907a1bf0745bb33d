"""The files below a folder, in folders that are links, too; nothing is left out without being named."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

LINKS = "Links are followed, so each must lead to a file or to a folder that does not hold it. Correct or remove it."
RENAME = "Rename such files and folders, an image and its mask alike: a name must be text in UTF-8."
NO_FILE = "Remove it."
READABLE = "Make it readable, or remove it."


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """What cannot be searched or used, whatever is in it.

    Args:
        path (`Path`): the file, folder or link.
        reason (`str`): what is wrong with it.
        remedy (`str`): what to do about it; one of the texts of this module.
    """

    path: Path
    reason: str
    remedy: str


def is_utf8(path: str | os.PathLike) -> bool:
    """Whether a path is text: bytes of another encoding stand in it as lone surrogates, which no file can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in os.fspath(path))


def find_files(folder: Path) -> tuple[list[Path], list[Obstacle]]:
    """List all files below a folder. Links are followed; names that begin with a dot are left out.

    Args:
        folder (`Path`): where to look.

    Returns:
        `tuple`: the files, sorted; and links to nothing or to a folder that holds them, folders that cannot be read,
        names that are not UTF-8, devices and the like.
    """
    files: list[Path] = []
    obstacles: list[Obstacle] = []

    def stop(path: Path, reason: str, remedy: str) -> None:
        obstacles.append(Obstacle(path=path, reason=reason, remedy=remedy))

    waiting: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        place, above = waiting.pop()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in above:
                stop(place, "is a link to a folder that holds it", LINKS)
                continue
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            stop(place, f"cannot be read: {error.strerror}", READABLE)
            continue
        for entry in entries:
            path = place / entry.name
            if entry.name.startswith("."):
                continue
            if not is_utf8(entry.name):
                stop(path, "the name is not UTF-8", RENAME)
            elif entry.is_dir():
                waiting.append((path, above | {(status.st_dev, status.st_ino)}))
            elif entry.is_file():
                files.append(path)
            elif entry.is_symlink():
                stop(path, "is a link to nothing", LINKS)
            else:
                stop(path, "is neither a file nor a folder", NO_FILE)
    return sorted(files), sorted(obstacles, key=lambda obstacle: obstacle.path)
