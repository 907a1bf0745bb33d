"""Getting a data set onto the disk, once per machine: where it lies, downloading, unpacking."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets.utils import tqdm
from filelock import FileLock, Timeout
from huggingface_hub import constants
from huggingface_hub.file_download import http_get
from torchvision.datasets.utils import calculate_md5, check_integrity

from hf_seg.problem import DataError
from hf_seg.text import printable

logger = logging.getLogger(__name__)

LOCK_NAME = ".hf_seg.lock"
# of an archive that is unpacked; pictures hardly shrink in one, and what grows without end is an attack
MAX_MEMBERS, MAX_GROWTH = 200_000, 20
UNPACKING = ".hf_seg-unpacking"  # a folder of this name is what a crash left; the next attempt starts it again


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An official .tar.gz file.

    Args:
        url (`str`): where it is downloaded from; the last part is its file name.
        md5 (`str`): MD5 checksum of the file, 32 hex digits.
        part (`str`): the folder that it holds.
    """

    url: str
    md5: str
    part: str

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


def cache_folder() -> Path:
    """Where hf_seg keeps things between runs: `hf_seg` in the Hugging Face cache (`$HF_HOME`)."""
    return Path(constants.HF_HOME) / "hf_seg"


def find_folder(root: str | None, name: str, parts: Sequence[str]) -> Path:
    """Find the folder where a data set is, or where it belongs when it is not there yet.

    Args:
        root (`str`, *optional*): `data.root` of the recipe: the folder itself, or one that holds it under `name`.
            None: `name` in the folder that the environment variable HF_SEG_DATA names (read at each call), or in
            hf_seg's cache folder when that variable is not set.
        name (`str`): the data set's folder name.
        parts (`Sequence[str]`): the folders in it, by which it is recognised.

    Returns:
        `Path`: the folder.

    Raises:
        DataError: when `root` or HF_SEG_DATA names no folder.
    """
    setting, base = ("data.root", root) if root is not None else ("HF_SEG_DATA", os.environ.get("HF_SEG_DATA"))
    if not base:
        return cache_folder() / name
    folder = Path(base).expanduser()
    if not folder.is_dir():
        raise DataError(f"{setting}: there is no folder {folder.absolute()}. Correct the path, or create the folder.")
    if root is not None and (any((folder / part).exists() for part in parts) or not (folder / name).is_dir()):
        return folder
    return folder / name


@contextmanager
def one_process(lock_file: Path, doing: str) -> Iterator[None]:
    """Let one process of this machine in at a time; the others say what they wait for.

    The operating system lets go of the lock when its holder dies, so a killed process never blocks the next one.
    """
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Waiting for another process that is %s …", doing)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing(folder: Path, doing: str) -> Iterator[None]:
    """Let one process work in `folder`, which is created, and give file system errors a remedy."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_process(folder / LOCK_NAME, doing):
            yield
    except OSError as error:
        remedy = disk_remedy(error) or "The folder must be writable."
        elsewhere = "Or put the unpacked data set elsewhere and name that folder in data.root."
        raise DataError(f"{folder}: {doing} failed: {error}. {remedy} {elsewhere}") from error


def disk_remedy(error: BaseException | None) -> str:
    """What to do when this user may not write, or read, there, or the disk is full; empty for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Free disk space."
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            "Give this user the right to read and write there; or, for what is in the Hugging Face cache, set HF_HOME "
            "to a folder of your own."
        )
    return ""


@contextmanager
def reading_archive(path: Path) -> Iterator[None]:
    """Make a DataError of whatever is wrong with an archive, but not of what is wrong with the disk.

    tarfile and zipfile raise errors of their own, of each method of compression, RuntimeError for members that are
    encrypted, NotImplementedError for methods that they do not know, ValueError for headers, …
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        if disk_remedy(error):
            raise
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} is damaged or cannot be unpacked: {printable(reason)}. Download it again.") from error


def fetch_archives(folder: Path, archives: Sequence[Archive], *, may_download: bool, what: str) -> None:
    """Make sure that the part of each archive is in `folder`; what is absent is unpacked, or downloaded and unpacked.

    Archives that already lie in `folder` are used and kept; downloaded ones are removed once they are unpacked.

    Args:
        folder (`Path`): the data set's folder.
        archives (`Sequence[Archive]`): what belongs into it.
        may_download (`bool`): whether to download what is absent.
        what (`str`): name of the data set, for messages.

    Raises:
        DataError: when something is absent and may not or cannot be downloaded, or an archive is damaged.
    """
    if all((folder / archive.part).is_dir() for archive in archives):
        return
    absent = [a for a in archives if not (folder / a.part).is_dir() and not (folder / a.file_name).is_file()]
    if absent and (not may_download or constants.HF_HUB_OFFLINE):
        urls = " and ".join(archive.url for archive in absent)
        parts = " and ".join(archive.part for archive in absent)
        files = " and ".join(archive.file_name for archive in absent)
        reason = (
            "is offline (HF_HUB_OFFLINE=1)" if may_download else "does not download into a folder given by data.root"
        )
        raise DataError(
            f"{folder}: {what} is not there: no folder {parts}, and no archive {files} to unpack. This run {reason}: "
            f"download {urls} elsewhere and put {files} there, or point data.root or HF_SEG_DATA to a copy."
        )
    with _writing(folder, f"getting {what}"):
        for archive in archives:
            if (folder / archive.part).is_dir():  # another process was quicker
                continue
            path = folder / archive.file_name
            by_hand = path.is_file()
            if not by_hand:
                _download(archive, path)
            elif not check_integrity(path, archive.md5):
                raise DataError(
                    f"{path} is not the official archive: its MD5 is {calculate_md5(path)} and not {archive.md5}. "
                    f"Remove it, or download it again from {archive.url}."
                )
            _untar(path, archive.part)
            if not by_hand:
                path.unlink()


def _download(archive: Archive, path: Path) -> None:
    """Download an archive to `path`, going on where a broken attempt stopped; `path` appears only when it is whole."""
    partial = path.with_name(path.name + ".part")
    if not check_integrity(partial, archive.md5):  # it is whole when the process was killed before the rename below
        try:
            with open(partial, "ab") as file:
                http_get(archive.url, file, resume_size=file.tell(), displayed_filename=archive.file_name)
        except (
            Exception
        ) as error:  # which HTTP client huggingface_hub uses, and so what it raises, is its own business
            raise DataError(
                f"Could not download {archive.url}: {type(error).__name__}: {error}. Check the connection and start "
                f"again: it goes on after the {partial.stat().st_size / 1e6:.1f} MB in {partial} (delete it to start "
                f"from the beginning). Or download it elsewhere and put {path.name} into {path.parent}."
            ) from error
        found = calculate_md5(partial)
        if found != archive.md5:
            partial.unlink()
            raise DataError(
                f"{archive.url}: the downloaded file has the MD5 {found} and not {archive.md5}, so it was removed. "
                f"Start again; if it stays so, something between here and the server replaces the file: get "
                f"{path.name} another way and put it into {path.parent}."
            )
    partial.rename(path)


@contextmanager
def _appearing_whole(folder: Path, part: str) -> Iterator[Path]:
    """A temporary folder whose `part` becomes `folder/part` at the end: a crash never leaves half a data set."""
    unpacking = folder / UNPACKING
    shutil.rmtree(unpacking, ignore_errors=True)
    unpacking.mkdir()
    try:
        yield unpacking
        (unpacking / part).rename(folder / part)
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)


def _untar(path: Path, part: str) -> None:
    with reading_archive(path), _appearing_whole(path.parent, part) as unpacking, tarfile.open(path) as archive:
        for member in tqdm(archive, desc=f"Unpacking {path.name}", unit=" files"):
            archive.extract(member, unpacking, filter="data")


def unpack_zips(folder: Path, zips: Mapping[str, str], *, wanted: Callable[[str], bool], remedy: str) -> None:
    """Make sure that each part of a data set is in `folder`, unpacking once what its .zip file there holds.

    Args:
        folder (`Path`): the data set's folder.
        zips (`Mapping[str, str]`): part → name of the official .zip file that holds a folder of that name.
        wanted (`Callable[[str], bool]`): whether a member, given by its name in the archive, is needed.
        remedy (`str`): what to do when a part is absent.

    Raises:
        DataError: when a part is absent, a .zip file is damaged, or `folder` is not writable.
    """
    needed = {part: folder / name for part, name in zips.items() if not (folder / part).is_dir()}
    absent = [f"neither a folder {part} nor {path.name}" for part, path in needed.items() if not path.is_file()]
    if absent:
        raise DataError(f"{folder}: the data set is not there ({', '.join(absent)}).\n{remedy}")
    if not needed:
        return
    with _writing(folder, "unpacking the official .zip files"):
        for part, path in needed.items():
            if not (folder / part).is_dir():  # another process may have been quicker
                _unzip(path, part, wanted)


def _unzip(path: Path, part: str, wanted: Callable[[str], bool]) -> None:
    with reading_archive(path), zipfile.ZipFile(path) as archive, _appearing_whole(path.parent, part) as unpacking:
        members = [m for m in archive.infolist() if m.filename.startswith(f"{part}/") and wanted(m.filename)]
        if not members:
            raise DataError(f"{path} holds none of the files needed from {part}/. Is it the official package?")
        size, packed = sum(member.file_size for member in members), path.stat().st_size
        if size > MAX_GROWTH * packed or len(members) > MAX_MEMBERS:
            raise DataError(
                f"{path}: {len(members):,} files of {size / 1e6:,.1f} MB in an archive of {packed / 1e6:,.1f} MB "
                f"are no pictures (at most {MAX_MEMBERS:,} files, {MAX_GROWTH} times the archive). Download it again."
            )
        with tqdm(desc=f"Unpacking {path.name}", total=size, unit="B", unit_scale=True) as progress:
            for member in members:
                archive.extract(member, unpacking)  # checks the CRC, and takes ".." and drive letters out of the name
                progress.update(member.file_size)
