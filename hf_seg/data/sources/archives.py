"""Examine the archives in a data folder without unpacking them."""

from __future__ import annotations

import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import ModuleType

from hf_seg.data.sources.download import Archive, check_md5, find_lack, open_archive, wanted_members
from hf_seg.problem import DataError, Level, Problem, disk_remedy

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
UNSAFE = "Do not unpack it by hand; download it from where the data set is published."


def examine_parts(source: ModuleType, folder: Path, *, may_download: bool) -> list[Problem]:
    """Report what `fetch_parts` would refuse (errors) or do (notes) with the same arguments; nothing is written."""
    title, lacking = source.SPEC.title, [each for each in source.ARCHIVES if not (folder / each.part).is_dir()]
    problems: list[Problem] = []
    if folder.is_dir():
        needed = [archive.file_name for archive in lacking]
        problems += examine_archives(folder, needed=needed, official=source.ARCHIVES)
    absent = [archive for archive in lacking if not (folder / archive.file_name).is_file()]
    if lack := find_lack(source, folder, may_download=may_download):
        problems.append(lack)
    elif lacking:
        code, what = "not-unpacked", f"a run would unpack {title} first"
        if absent:
            files = " and ".join(f"{archive.file_name}, {archive.size}" for archive in absent)
            code, what = "not-downloaded", f"a run would download {title} first ({files})"
        later = "Its pairs can be examined only after that."
        problems.append(Problem(level="note", code=code, place=str(folder), what=what, remedy=later))
    return problems


def examine_archives(
    folder: Path, *, needed: Collection[str] = (), official: Sequence[Archive] = ()
) -> Iterator[Problem]:
    """Examine the archives in a folder, but not in its subfolders.

    Args:
        needed (`Collection[str]`, *optional*): names of the archives that a run would unpack: their problems are
            errors, and the checksums of .zip members are compared.
        official (`Sequence[Archive]`, *optional*): the official archives, which files of the same names must be.
    """
    known = {archive.file_name: archive for archive in official}
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(SUFFIXES)):
        level: Level = "error" if path.name in needed else "warning"
        try:
            for problem in _examine(path, known.get(path.name), needed=path.name in needed):
                yield problem if problem.level == "warning" else replace(problem, level=level)
        except DataError as error:
            yield from (replace(problem, level=level) for problem in error.problems)
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            yield Problem(level=level, code="unreachable", place=str(path), what=what, remedy=disk_remedy(error))


def _examine(path: Path, archive: Archive | None, *, needed: bool) -> Iterator[Problem]:
    if archive and archive.md5:
        wrong = check_md5(path, archive)
        if not wrong:
            return  # the content of the official archive is known
        yield wrong
    unsafe = []
    with open_archive(path) as opened:
        if isinstance(opened, tarfile.TarFile):
            for member in opened:
                try:
                    tarfile.data_filter(member, str(path.parent))  # the filter that unpacking uses
                except tarfile.FilterError as error:
                    unsafe.append(str(error))
            level, what = "error", "would be written outside the folder, or are not files"
        else:
            for member in wanted_members(opened, path, archive) if archive and needed else ():
                with opened.open(member) as file:
                    while file.read(1 << 20):
                        pass  # zipfile compares the checksum at the end
            names = opened.namelist()
            unsafe = [name for name in names if {"/", ".."} & {*PurePosixPath(name.replace("\\", "/")).parts}]
            level, what = "warning", "name a place outside the folder"  # zipfile removes it from the names
    if unsafe:
        shown = ", ".join(unsafe[:3]) + (", …" if len(unsafe) > 3 else "")
        what = f"{len(unsafe)} members {what}: {shown}"
        yield Problem(level=level, code="unsafe-archive", place=str(path), what=what, remedy=UNSAFE)
