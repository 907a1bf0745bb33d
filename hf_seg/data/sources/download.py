"""Find, download and unpack a data set, once per machine."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from datasets.utils import tqdm
from huggingface_hub import constants
from huggingface_hub.file_download import http_get

from hf_seg.files import cache_folder, one_process
from hf_seg.problem import DataError, Problem, disk_remedy

logger = logging.getLogger(__name__)

LOCK_NAME = ".hf_seg.lock"
# limits of a .zip file to unpack: pictures are hardly compressible, so one that grows far more is an attack
MAX_MEMBERS, MAX_GROWTH = 200_000, 20
UNPACKING = ".hf_seg-unpacking"  # temporary folder; after a crash, the next attempt starts it again


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An official archive, .tar.gz or .zip."""

    part: str  # the folder that it contains
    file_name: str
    url: str | None = None  # None where an account is needed
    md5: str | None = None  # 32 hex digits; None when it is not known
    size: str = ""  # to show to users
    wanted: Callable[[str], bool] = bool  # for a .zip file: whether the member with this name is needed


def find_folder(source: ModuleType, root: str | None) -> Path:
    """Find the folder where an official data set is, or where it belongs when it is not there yet.

    Args:
        source: `oxford_pet` or `cityscapes`; its `PARTS` are the folders by which the data set is recognised.
        root (`str`, *optional*): `data.root` of the recipe: the folder itself, or one that contains it as
            `FOLDER_NAME`. None: `FOLDER_NAME` in the folder that the environment variable HF_SEG_DATA names (read at
            each call), or in hf_seg's cache folder when that variable is not set.

    Raises:
        DataError: when `root` or HF_SEG_DATA is not an existing folder.
    """
    setting, base = ("data.root", root) if root is not None else ("HF_SEG_DATA", os.environ.get("HF_SEG_DATA"))
    if not base:
        return cache_folder() / source.FOLDER_NAME
    folder = Path(base).expanduser()
    if not folder.is_dir():
        what = f"there is no folder {folder.absolute()}"
        raise DataError(setting, what, "Correct the path, or create the folder.", code="data-set")
    inner = folder / source.FOLDER_NAME
    if root is not None and (any((folder / part).exists() for part in source.PARTS) or not inner.is_dir()):
        return folder
    return inner


def find_lack(source: ModuleType, folder: Path, *, may_download: bool) -> Problem | None:
    """Return the problem that stops [`fetch_parts`], or None: missing parts that it cannot unpack or download."""
    absent = [a for a in source.ARCHIVES if not (folder / a.part).is_dir() and not (folder / a.file_name).is_file()]
    if not absent or (may_download and not constants.HF_HUB_OFFLINE and all(archive.url for archive in absent)):
        return None
    parts = " and ".join(archive.part for archive in absent)
    files = " and ".join(archive.file_name for archive in absent)
    urls = " and ".join(archive.url or "" for archive in absent)
    why = "is offline (HF_HUB_OFFLINE=1)" if may_download else "does not download into a folder given by data.root"
    remedy = source.HOW_TO_GET.format(folder=folder) or (
        f"This run {why}: download {urls} elsewhere and put {files} there, or point data.root or HF_SEG_DATA to a "
        "copy."
    )
    what = f"{source.SPEC.title} is missing: no folder {parts}, and no archive {files} to unpack"
    return Problem(code="data-set", place=str(folder), what=what, remedy=remedy)


def fetch_parts(source: ModuleType, folder: Path, *, may_download: bool) -> None:
    """Make sure that an official data set is in `folder`: unpack missing parts, after downloading them if necessary.

    Archives that already lie in `folder` are used and kept; downloaded ones are removed once they are unpacked.

    Raises:
        DataError: when something is missing and may not or cannot be downloaded, an archive is damaged, or `folder` is
            not writable.
    """
    if lack := find_lack(source, folder, may_download=may_download):
        raise DataError(problems=[lack])
    if all((folder / archive.part).is_dir() for archive in source.ARCHIVES):
        return
    doing = f"getting {source.SPEC.title}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_process(folder / LOCK_NAME, doing):
            for archive in source.ARCHIVES:
                if not (folder / archive.part).is_dir():  # another process may have been quicker
                    _fetch(archive, folder / archive.file_name)
    except OSError as error:
        remedy = disk_remedy(error) or "The folder must be writable."
        remedy += " Or put the unpacked data set elsewhere and name that folder in data.root."
        raise DataError(folder, f"{doing} failed: {error}", remedy) from error


def _fetch(archive: Archive, path: Path) -> None:
    by_hand = path.is_file()
    if not by_hand:
        _download(archive, path)
    elif problem := check_md5(path, archive):
        raise DataError(problems=[problem])
    _unpack(path, archive)
    if not by_hand:
        path.unlink()


def check_md5(path: Path, archive: Archive) -> Problem | None:
    """Return a problem if a file is not the official archive; None if it is, or if its MD5 is not known."""
    if archive.md5 is None or (found := _md5(path)) == archive.md5:
        return None
    what = f"is not the official archive: its MD5 is {found} and not {archive.md5}"
    remedy = f"Remove it, or download it again from {archive.url}."
    return Problem(code="wrong-archive", place=str(path), what=what, remedy=remedy)


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _download(archive: Archive, path: Path) -> None:
    """Download an archive to `path`, resuming an interrupted download; `path` appears only when it is complete."""
    partial = path.with_name(path.name + ".part")
    # it is complete if a process was killed just before the rename below
    if not partial.is_file() or _md5(partial) != archive.md5:
        try:
            with open(partial, "ab") as file:
                http_get(archive.url, file, resume_size=file.tell(), displayed_filename=archive.file_name)
        except Exception as error:  # what it raises depends on the HTTP client that huggingface_hub uses
            what = f"cannot be downloaded: {type(error).__name__}: {error}"
            remedy = (
                f"Check the connection and start again: it continues after the {partial.stat().st_size / 1e6:.1f} MB "
                f"in {partial} (delete it to start from the beginning). Or download it elsewhere and put {path.name} "
                f"into {path.parent}."
            )
            raise DataError(archive.url, what, remedy) from error
        if (found := _md5(partial)) != archive.md5:
            partial.unlink()
            what = f"the downloaded file has the MD5 {found} and not {archive.md5}, so it was removed"
            remedy = (
                "Start again. If this happens again, something between this machine and the server replaces the file: "
                f"get {path.name} another way and put it into {path.parent}."
            )
            raise DataError(archive.url, what, remedy, code="wrong-archive")
    partial.rename(path)


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    """Open an archive, and turn any exception into a DataError, except for errors of the disk."""
    try:
        with zipfile.ZipFile(path) if path.suffix.lower() == ".zip" else tarfile.open(path) as archive:
            yield archive
    except DataError:
        raise
    except Exception as error:  # tarfile and zipfile raise many types: for compression, encryption, headers, …
        if disk_remedy(error):
            raise
        what = f"is damaged or cannot be unpacked: {str(error) or type(error).__name__}"
        raise DataError(path, what, "Download it again.", code="damaged-archive") from error


def _unpack(path: Path, archive: Archive) -> None:
    """Unpack into a temporary folder first, so that a crash never leaves half a data set."""
    unpacking = path.with_name(UNPACKING)
    shutil.rmtree(unpacking, ignore_errors=True)
    unpacking.mkdir()
    try:
        with open_archive(path) as opened:
            if isinstance(opened, tarfile.TarFile):
                members = tqdm(opened, desc=f"Unpacking {path.name}", unit=" files", disable=None)
                opened.extractall(unpacking, members, filter="data")
            else:
                members = wanted_members(opened, path, archive)
                size = sum(member.file_size for member in members)
                bar = tqdm(desc=f"Unpacking {path.name}", total=size, unit="B", unit_scale=True, disable=None)
                with bar as progress:
                    for member in members:
                        opened.extract(member, unpacking)  # checks the CRC, and removes ".." from the name
                        progress.update(member.file_size)
            (unpacking / archive.part).rename(path.with_name(archive.part))
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


def wanted_members(opened: zipfile.ZipFile, path: Path, archive: Archive) -> list[zipfile.ZipInfo]:
    """Return the members of a .zip file that a run unpacks; a DataError if none, or if they cannot be pictures."""
    members = [member for member in opened.infolist() if member.filename.startswith(f"{archive.part}/")]
    members = [member for member in members if archive.wanted(member.filename)]
    if not members:
        what = f"holds none of the files needed from {archive.part}/"
        raise DataError(path, what, "Is it the official package?", code="wrong-archive")
    size, packed = sum(member.file_size for member in members), path.stat().st_size
    if size > MAX_GROWTH * packed or len(members) > MAX_MEMBERS:
        what = (
            f"{len(members):,} files of {size / 1e6:,.1f} MB in an archive of {packed / 1e6:,.1f} MB cannot be "
            f"pictures (at most {MAX_MEMBERS:,} files, {MAX_GROWTH} times the archive)"
        )
        raise DataError(path, what, "Download it again.", code="wrong-archive")
    return members
