import json
import os
from types import SimpleNamespace

import pytest

from hf_seg.problem import Refusal
from hf_seg.training import checkpoints
from hf_seg.training.checkpoints import CHECKSUMS, check_disk, find_damage, last_checkpoint, seal


def write_checkpoint(run_dir, step, sealed=True):
    folder = run_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "rng_state.pth"):
        (folder / name).write_bytes(os.urandom(3000))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if sealed:
        seal(folder)
    return folder


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "truncated weights": (
        lambda folder: os.truncate(folder / "model.safetensors", 2999),
        "model.safetensors has 2,999 bytes instead of 3,000",
    ),
    "a bit of the weights": (
        lambda folder: flip_a_bit(folder / "model.safetensors"),
        "model.safetensors has changed since it was written",
    ),
    "no optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "state of another step": (
        lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 7}'),
        "trainer_state.json is from step 7",
    ),
    "state cut short": (
        lambda folder: (folder / "trainer_state.json").write_text('{"glob'),
        "trainer_state.json cannot be read: ",
    ),
    "state is no object": (lambda folder: (folder / "trainer_state.json").write_text("3"), "cannot be read: "),
    "no state": (lambda folder: (folder / "trainer_state.json").unlink(), "incomplete"),
    "checksums cut short": (lambda folder: (folder / CHECKSUMS).write_text('{"mod'), "checksums.json cannot be read"),
    "checksums of another kind": (lambda folder: (folder / CHECKSUMS).write_text("[1]"), "checksums.json cannot be"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, damage, words):
    assert last_checkpoint(tmp_path) is None
    before, newest = write_checkpoint(tmp_path, 8), write_checkpoint(tmp_path, 16)
    assert last_checkpoint(tmp_path) == str(newest) and capsys.readouterr().out == ""
    damage(newest)
    assert words in find_damage(newest)
    assert last_checkpoint(tmp_path) == str(before)
    out = capsys.readouterr().out
    assert out.startswith(f"{newest}: ") and words in out and out.endswith("; the checkpoint is ignored\n")


def test_steps_are_compared_as_numbers(tmp_path):
    write_checkpoint(tmp_path, 8)
    newest = write_checkpoint(tmp_path, 16)
    (tmp_path / "checkpoint-100").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()
    assert last_checkpoint(tmp_path) == str(newest)


def test_a_checkpoint_from_before_there_were_checksums(tmp_path):
    assert last_checkpoint(tmp_path) is None
    folder = write_checkpoint(tmp_path, 8, sealed=False)
    assert last_checkpoint(tmp_path) == str(folder)


def test_room_for_checkpoints(tmp_path, monkeypatch):
    model = SimpleNamespace(num_parameters=lambda only_trainable: 10**6, get_memory_footprint=lambda: 6 * 10**6)
    needed = 3 * (6 + 3 * 4) * 10**6  # two that are kept, and one that is written
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    check_disk(tmp_path, model, kept=2)
    with pytest.raises(Refusal, match="checkpoints need up to 72 MB, but 54 MB are free"):
        check_disk(tmp_path, model, kept=2, averaged=True)
    with pytest.raises(Refusal, match="checkpoints need up to 72 MB, but 54 MB are free; free disk space, or choose"):
        check_disk(tmp_path, model, kept=3)
    folder = write_checkpoint(tmp_path, 8)  # of this run, interrupted: it is there already
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 9000))
    check_disk(tmp_path, model, kept=2)
    assert folder.exists()
