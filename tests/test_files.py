import errno
import json
import os
import stat

import pytest

from hf_seg import cli
from hf_seg.files import PARTIAL, check_writable, write_json, write_whole
from hf_seg.problem import Refusal


def test_a_file_is_written_whole_and_its_folder_is_made(tmp_path):
    file = tmp_path / "new" / "folder" / "a.txt"
    for text in ("first", "second"):
        with write_whole(file) as partial:
            partial.write_text(text)
            assert partial.parent == file.parent and PARTIAL.fullmatch(partial.name)
            assert not file.exists() or file.read_text() == "first"
        assert file.read_text() == text and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_older_file_is_as_it_was(tmp_path, error):
    file = tmp_path / "a.txt"
    file.write_text("older")
    with pytest.raises(error), write_whole(file) as partial:
        partial.write_text("half of")
        raise error
    assert file.read_text() == "older" and list(tmp_path.iterdir()) == [file]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), write_whole(tmp_path / "a.txt"):
        pass
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    file = tmp_path / "a.txt"
    with write_whole(file) as one, write_whole(file) as other:
        one.write_text("outer")
        other.write_text("inner")
    assert file.read_text() == "outer" and list(tmp_path.iterdir()) == [file]


def test_a_link_is_replaced(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to("theirs")
    with write_whole(tmp_path / "link") as partial:
        partial.write_text("ours")
    assert (tmp_path / "theirs").read_text() == "theirs" and not (tmp_path / "link").is_symlink()


def test_names_of_any_length_and_permissions_of_a_new_file(tmp_path):
    file = tmp_path / ("x" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    before = os.umask(0o027)
    try:
        with write_whole(file) as partial:
            partial.write_text("")
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_json_is_strict_and_whole(tmp_path):
    write_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, "x", None)}, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": [1, "x", None]}
    with pytest.raises(TypeError):
        write_json({"a": object()}, tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == text


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    assert check_writable(tmp_path / "new" / "folder") == check_writable(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"/file: is not a folder, so nothing can be written to .*/file/out; name"):
        check_writable(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may do all
    with pytest.raises(Refusal, match=f"^{tmp_path}: is not writable; make room$"):
        check_writable(tmp_path / "new", "make room")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x.png"),
            "x.png: No space left on device. Free disk space.",
        ),
        (OSError(errno.EROFS, "Read-only file system", "x"), "x: Read-only file system. Give this user the right to"),
    ],
)
def test_a_command_whose_files_cannot_be_written(monkeypatch, capsys, error, said):
    def fail():
        raise error

    monkeypatch.setattr(cli, "json_schema", fail)
    assert cli.main(["schema"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    monkeypatch.setattr(cli, "json_schema", lambda: {}["a bug"])
    with pytest.raises(KeyError):
        cli.main(["schema"])
