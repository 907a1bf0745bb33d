import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from filelock import FileLock
from huggingface_hub import constants, file_download

from hf_seg.data import load_splits
from hf_seg.data.sources import download, oxford_pet
from hf_seg.data.sources.download import LOCK_NAME, UNPACKING, Archive
from hf_seg.files import one_process
from hf_seg.problem import DataError

# What a second process runs: the same download, from the test's server.
PROGRAM = """
import sys
from hf_seg.data import load_splits; from hf_seg.data.sources import oxford_pet
from hf_seg.data.sources.download import Archive
from hf_seg.recipe.keys import DataRecipe
oxford_pet.ARCHIVES = tuple(
    Archive(part=part, file_name=part + ".tar.gz", url=url, md5=md5) for url, md5, part in {archives}
)
print(load_splits(DataRecipe(name="oxford_pet")).num_rows["train"])
"""


class Server(ThreadingHTTPServer):
    """Serves `files`; keeps the `Range` of every request; drops the connection once for each number in `drops`."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.drops, self.ranges_work = files, [], [], True

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content, wanted = self.server.files.get(self.path), self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges_work else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.drops.pop(0) if self.server.drops else None])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(pet_folder, monkeypatch):
    """The archives of the tiny data set behind the official URLs, and a machine that is online."""
    files, archives = {}, []
    for part in ("images", "annotations"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.add(pet_folder / part, part)
        content = buffer.getvalue()
        files[f"/{part}.tar.gz"] = content
        archives.append((part, hashlib.md5(content).hexdigest()))
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.archives = [(f"{server.url}/{part}.tar.gz", md5, part) for part, md5 in archives]
        publish(server, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)  # between retries
        yield server
        server.shutdown()
        thread.join()


def publish(server, monkeypatch):
    archives = tuple(
        Archive(part=part, file_name=f"{part}.tar.gz", url=url, md5=md5) for url, md5, part in server.archives
    )
    monkeypatch.setattr(oxford_pet, "ARCHIVES", archives)


@pytest.fixture
def target(tmp_path, monkeypatch):
    """Where the data set goes: a folder that HF_SEG_DATA names."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("HF_SEG_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "oxford-iiit-pet"


def contents(folder):
    return {path.name for path in folder.iterdir()}


def test_official_addresses():
    assert all(a.url.endswith(f"/{a.file_name}") for a in oxford_pet.ARCHIVES)
    assert [(a.file_name, a.part, a.md5) for a in oxford_pet.ARCHIVES] == [
        ("images.tar.gz", "images", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
        ("annotations.tar.gz", "annotations", "95a8c909bbe2e81eed6a22bccdf3f68f"),
    ]
    assert all(a.url.startswith("https://www.robots.ox.ac.uk/~vgg/data/pets/data/") for a in oxford_pet.ARCHIVES)


def test_download_once(server, target, recipe):
    splits = load_splits(recipe("oxford_pet"))
    assert splits.num_rows == {"train": 18, "validation": 2, "test": 3}
    assert splits["train"][0]["image"].size == (12, 8)
    assert contents(target) == {"images", "annotations", LOCK_NAME}
    load_splits(recipe("oxford_pet"))
    assert server.requests == [("/images.tar.gz", None), ("/annotations.tar.gz", None)]


def test_download_goes_to_the_cache_without_hf_seg_data(server, tmp_path, recipe):
    load_splits(recipe("oxford_pet"))
    assert (tmp_path / "hf_home" / "hf_seg" / "oxford-iiit-pet" / "images" / "Cat_1.jpg").is_file()


def test_a_dropped_connection_is_taken_up_again(server, target, recipe, monkeypatch):
    server.drops = [3000]
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    load_splits(recipe("oxford_pet"))
    assert server.requests[0] == ("/images.tar.gz", None)
    path, wanted = server.requests[1]
    assert path == "/images.tar.gz" and wanted == "bytes=3000-"


@pytest.mark.parametrize("ranges_work", [True, False])
def test_the_next_run_goes_on_where_a_broken_one_stopped(server, target, recipe, ranges_work):
    server.ranges_work = ranges_work
    target.mkdir()
    (target / "images.tar.gz.part").write_bytes(server.files["/images.tar.gz"][:2500])
    (target / UNPACKING / "images").mkdir(parents=True)  # left by a process that was killed
    (target / UNPACKING / "images" / "half.jpg").write_bytes(b"")
    assert load_splits(recipe("oxford_pet")).num_rows["train"] == 18
    assert server.requests[0] == ("/images.tar.gz", "bytes=2500-")
    assert contents(target) == {"images", "annotations", LOCK_NAME}
    assert not (target / "images" / "half.jpg").exists()


def test_a_whole_partial_file_is_not_downloaded_again(server, target, recipe):
    target.mkdir()
    (target / "images.tar.gz.part").write_bytes(server.files["/images.tar.gz"])
    load_splits(recipe("oxford_pet"))
    assert server.requests == [("/annotations.tar.gz", None)]


def test_no_connection(server, target, recipe, monkeypatch):
    server.archives[0] = ("http://127.0.0.1:9/images.tar.gz", *server.archives[0][1:])  # nobody listens there
    publish(server, monkeypatch)
    target.mkdir()
    (target / "images.tar.gz.part").write_bytes(b"x" * 1_500_000)
    with pytest.raises(DataError) as caught:
        load_splits(recipe("oxford_pet"))
    message = str(caught.value)
    assert message.startswith("http://127.0.0.1:9/images.tar.gz: cannot be downloaded: ConnectError: ")
    assert "continues after the 1.5 MB" in message and f"put images.tar.gz into {target}" in message
    assert not (target / "images").exists()


def test_not_found_on_the_server(server, target, recipe):
    del server.files["/annotations.tar.gz"]
    with pytest.raises(DataError, match=r"/annotations\.tar\.gz: cannot be downloaded: .*404"):
        load_splits(recipe("oxford_pet"))
    assert (target / "images" / "Cat_1.jpg").is_file()  # what was had stays, whole


def test_wrong_checksum(server, target, recipe):
    expected = server.archives[0][1]
    server.files["/images.tar.gz"] = b"<html>Please log in to this network</html>"
    with pytest.raises(DataError, match=f"images.tar.gz: the downloaded file has the MD5 .* and not {expected}"):
        load_splits(recipe("oxford_pet"))
    assert contents(target) == {LOCK_NAME}


def test_offline_says_where_the_files_go(server, target, recipe, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        load_splits(recipe("oxford_pet"))
    message = str(caught.value)
    assert message.startswith(f"{target}: Oxford-IIIT Pet is missing") and "HF_HUB_OFFLINE=1" in message
    assert f"{server.url}/images.tar.gz" in message and "data.root or HF_SEG_DATA" in message
    assert server.requests == [] and not target.exists()


def test_a_folder_given_by_root_is_not_filled(server, tmp_path, recipe):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no folder images and annotations.*does not download into .* data.root"):
        load_splits(recipe("oxford_pet", tmp_path / "empty"))
    assert server.requests == []


def test_archives_put_there_by_hand(server, target, recipe, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    target.mkdir()
    for name, content in server.files.items():
        (target / name[1:]).write_bytes(content)
    assert load_splits(recipe("oxford_pet")).num_rows["train"] == 18
    assert contents(target) == {"images", "annotations", "images.tar.gz", "annotations.tar.gz", LOCK_NAME}
    assert "Unpacking" not in capsys.readouterr().err  # no bar, since this is no terminal


def test_an_archive_put_there_by_hand_is_checked(server, target, recipe):
    target.mkdir()
    (target / "images.tar.gz").write_bytes(server.files["/images.tar.gz"][:-100])
    with pytest.raises(DataError, match=r"images\.tar\.gz: is not the official archive: its MD5 is .*Remove it"):
        load_splits(recipe("oxford_pet"))
    assert (target / "images.tar.gz").exists()


def test_an_archive_cannot_write_outside(server, target, recipe, monkeypatch):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("images/../../../outside"))
    server.files["/images.tar.gz"] = buffer.getvalue()
    server.archives[0] = (server.archives[0][0], hashlib.md5(buffer.getvalue()).hexdigest(), "images")
    publish(server, monkeypatch)
    with pytest.raises(DataError, match="would be extracted to .*which is outside the destination"):
        load_splits(recipe("oxford_pet"))
    assert not list(target.parent.parent.rglob("outside"))


def start(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    command = [sys.executable, "-c", PROGRAM.format(archives=server.archives)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_download_once(server, target, tmp_path, monkeypatch):
    processes = [start(server, tmp_path, monkeypatch) for _ in range(2)]
    for process in processes:
        out, error = process.communicate(timeout=600)
        assert out == "18\n", error
    assert sorted(server.requests) == [("/annotations.tar.gz", None), ("/images.tar.gz", None)]
    assert contents(target) == {"images", "annotations", LOCK_NAME}


def test_a_waiting_process_says_so_and_uses_what_the_other_got(server, target, tmp_path, monkeypatch, pet_folder):
    target.mkdir()
    with one_process(target / LOCK_NAME, "testing"):
        process = start(server, tmp_path, monkeypatch)
        lines = iter(process.stderr.readline, "")
        assert any("Waiting for another process that is getting Oxford-IIIT Pet" in line for line in lines)
        for part in ("images", "annotations"):
            (pet_folder / part).rename(target / part)
    out, error = process.communicate(timeout=600)
    assert out == "18\n", error
    assert server.requests == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    lock = tmp_path / LOCK_NAME
    program = (
        "import sys, time; from pathlib import Path; from hf_seg.files import one_process\n"
        f"with one_process(Path({str(lock)!r}), 'dying'): print('in', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    process.kill()
    process.wait()
    FileLock(lock).acquire(timeout=0)  # raises Timeout when it is held


@pytest.mark.parametrize(
    ("number", "remedy", "other"),
    [
        (errno.EACCES, "Give this user the right to read and write there; or", "disk space"),
        (errno.EROFS, "set HF_HOME to a folder of your own", "disk space"),
        (errno.ENOSPC, "Free disk space", "HF_HOME"),
    ],
)
def test_the_remedy_follows_from_what_the_disk_says(server, target, recipe, monkeypatch, number, remedy, other):
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(download, "one_process", refuse)  # as with a cache that belongs to another user
    with pytest.raises(DataError) as caught:
        load_splits(recipe("oxford_pet"))
    message = str(caught.value)
    assert message.startswith(f"{target}: getting Oxford-IIIT Pet failed: [Errno {number}]") and remedy in message
    assert other not in message
