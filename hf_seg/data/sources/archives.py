"""Packed files in a data folder: what is in them is listed, and nothing is unpacked."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

from torchvision.datasets.utils import calculate_md5

from hf_seg.data.sources.download import Archive, reading_archive
from hf_seg.problem import DataError, Level, Problem, listing
from hf_seg.text import printable

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
IsRead = Callable[[str], bool]
AGAIN = "Download it again."
UNSAFE = "Do not unpack it by hand; get it from where the data set is published."


def examine_archives(
    folder: Path, *, needed: Collection[str], official: Mapping[str, Archive], is_read: IsRead | None = None
) -> Iterator[Problem]:
    """Look into the archives that lie in a folder.

    Args:
        folder (`Path`): where they are; folders in it are not searched.
        needed (`Collection[str]`): names of those that a run would unpack: what is wrong with them stops it.
        official (`Mapping[str, Archive]`): name → what it must be.
        is_read (`Callable`, *optional*): which members of a .zip file that is needed a run would unpack, by their
            names: their checksums are compared.
    """
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        level: Level = "error" if path.name in needed else "warning"
        if path.name.lower().endswith(TAR_SUFFIXES):
            yield from _examine_tar(path, level, official.get(path.name))
        elif path.suffix.lower() == ".zip":
            yield from _examine_zip(path, level, is_read if path.name in needed else None)


def _examine_tar(path: Path, level: Level, official: Archive | None) -> Iterator[Problem]:
    if official:
        found = calculate_md5(path)
        if found == official.md5:
            return  # what is in it is known
        what = f"is not the official archive: its MD5 is {found} and not {official.md5}"
        remedy = f"Remove it, or download it again from {official.url}."
        yield Problem(level=level, code="wrong-archive", file=str(path), what=what, remedy=remedy)
    unsafe = []
    try:
        with reading_archive(path), tarfile.open(path) as archive:
            for member in archive:
                try:
                    tarfile.data_filter(member, str(path.parent))  # the one that it would be unpacked with
                except tarfile.FilterError as error:
                    unsafe.append(printable(str(error)))
    except (DataError, OSError) as error:
        yield _damaged(path, level, error)
    if unsafe:
        what = f"{len(unsafe)} members would be written outside of the folder, or are no files:\n{listing(unsafe)}"
        yield Problem(level=level, code="unsafe-archive", file=str(path), what=what, remedy=UNSAFE)


def _examine_zip(path: Path, level: Level, is_read: IsRead | None) -> Iterator[Problem]:
    try:
        with reading_archive(path), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for name in names:
                if is_read and is_read(name):
                    with archive.open(name) as member:
                        while member.read(1 << 20):
                            pass  # to the end, where the checksum is compared
    except (DataError, OSError) as error:
        yield _damaged(path, level, error)
        return
    parts = {name: PurePosixPath(name.replace("\\", "/")).parts for name in names}
    unsafe = [printable(name) for name in names if {"/", ".."} & {*parts[name]}]
    if unsafe:  # zipfile takes such parts out of a name, so that training is in no danger
        what = f"{len(unsafe)} members name a place outside of the folder:\n{listing(unsafe)}"
        yield Problem(level="warning", code="unsafe-archive", file=str(path), what=what, remedy=UNSAFE)


def _damaged(path: Path, level: Level, error: DataError | OSError) -> Problem:
    what = str(error).removeprefix(f"{path} ").removesuffix(f". {AGAIN}")
    return Problem(level=level, code="damaged-archive", file=str(path), what=what, remedy=AGAIN)
