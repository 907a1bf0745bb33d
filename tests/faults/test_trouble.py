"""What goes wrong in the middle of a training: it is said in one error, and nothing already made is lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_seg.launch import run_all
from hf_seg.training.trainer import SegTrainer

TRAIN = Path(__file__).parents[2] / "hf_seg" / "train.py"
OTHER_DATA = Path(__file__).parent / "train_on_other_data.py"

pytestmark = pytest.mark.faults


@pytest.fixture
def at_step(monkeypatch):
    """Let something happen at a step of training: `at_step(6, action)`; the action gets the trainer and the inputs."""

    def plan(step, action):
        original = SegTrainer.compute_loss

        def compute_loss(self, model, inputs, *arguments, **keywords):
            if model.training and self.state.global_step == step - 1:
                action(self, inputs)
            return original(self, model, inputs, *arguments, **keywords)

        monkeypatch.setattr(SegTrainer, "compute_loss", compute_loss)

    return plan


def test_a_loss_that_is_no_number(write_recipe, run, at_step):
    recipe = write_recipe("a", training={"num_train_epochs": 3})
    at_step(6, lambda trainer, inputs: inputs["pixel_values"].fill_(torch.nan))
    status, _, err = run(recipe)
    assert status == 1
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: a: runs/a: the training loss is nan at step 6; its batch on this process is train[")
    assert line.count("train[") == 8  # the whole batch
    assert "The last checkpoint before it is runs/a/checkpoint-4. Lower training.learning_rate" in line
    assert Path("runs/a/checkpoint-4").exists() and not Path("runs/a/checkpoint-8").exists()


def test_out_of_memory(write_recipe, run, at_step):
    def raise_it(trainer, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    at_step(2, raise_it)
    status, _, err = run(write_recipe("a", training={"gradient_accumulation_steps": 2}))
    assert status == 1
    assert "error: a: cpu is out of memory in training, with 4 images of 64×64 pixels at a time; set " in err
    assert "training.gradient_accumulation_steps to 4" in err


def test_a_run_that_fails_does_not_end_the_launch(write_recipe, run, monkeypatch):
    city = write_recipe("city", training={"num_train_epochs": 1})
    write_recipe("pet", model={"init": "checkpoint", "encoder_weights": "city"}, training={"num_train_epochs": 1})
    other = write_recipe("other", training={"num_train_epochs": 1})
    original = SegTrainer.train

    def fail(self, *arguments, **keywords):
        if Path(self.args.output_dir).name == "city":
            raise ZeroDivisionError("a mistake of ours")
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(SegTrainer, "train", fail)
    status, out, err = run(city, city.with_name("pet.json"), other)
    assert status == 1
    assert "ZeroDivisionError" in err and "Traceback" in err and "error: city: a mistake of ours" in err
    assert "error: pet: not trained, because city failed" in err
    assert "| other " in out and "| city " not in out and Path("runs/other/results.json").exists()


def test_a_damaged_newest_checkpoint(write_recipe, run, at_step):
    crashed = []

    def crash_once(trainer, inputs):
        if not crashed:
            crashed.append(True)
            raise ZeroDivisionError

    at_step(14, crash_once)
    recipe = write_recipe("a", training={"num_train_epochs": 4})
    assert run(recipe)[0] == 1
    newest = Path("runs/a/checkpoint-12")
    size = (newest / "optimizer.pt").stat().st_size
    os.truncate(newest / "optimizer.pt", 100)
    status, out, err = run(recipe)
    assert status == 0, err
    message = f"{newest}: optimizer.pt has 100 bytes instead of {size:,}; the checkpoint is ignored"
    assert message in out and Path("runs/a/results.json").exists()


@pytest.mark.slow
def test_ranks_that_see_different_data(write_recipe, launch, tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for rank, count in enumerate((20, 19)):
        root = tmp_path / f"data{rank}" / "oxford-iiit-pet"
        (root / "images").mkdir(parents=True)
        (root / "annotations" / "trimaps").mkdir(parents=True)
        names = [f"cat_{number:02}" for number in range(count)]
        for name in names:
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(root / "images" / f"{name}.jpg")
            Image.new("L", (8, 8), 1).save(root / "annotations" / "trimaps" / f"{name}.png")
        (root / "annotations" / "trainval.txt").write_text("\n".join(names))
        (root / "annotations" / "test.txt").write_text(names[0])
    monkeypatch.setenv("HF_SEG_DATA", str(tmp_path / "data"))
    recipe = write_recipe("a", data={"name": "oxford_pet", "cache": str(tmp_path / "cache")})
    process = launch(recipe, script=OTHER_DATA, processes=2, check=False)
    assert process.returncode != 0
    assert "error: a: the processes see different data: rank 0 has the fingerprint " in process.stderr
    assert ", rank 1 has " in process.stderr and "put the same files on all machines" in process.stderr
    assert not (tmp_path / "runs").exists()


def small_disk(tmp_path, size):
    """The words that start a shell with a small file system at `tmp_path/disk`; None where that is not allowed."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={size} none {disk}"
    if shutil.which("unshare") is None or subprocess.run([*unshare, *mount.split()], capture_output=True).returncode:
        return None
    return [*unshare, "sh", "-c"], mount, disk


@pytest.mark.slow
def test_a_folder_that_is_read_only(write_recipe, tmp_path):
    found = small_disk(tmp_path, "8m,ro")
    if found is None:
        pytest.skip("mounting a file system is not allowed here")
    shell, mount, disk = found
    command = [*shell, f"{mount} && {sys.executable} {TRAIN} {write_recipe('a')} --output_dir {disk}/runs"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    process = subprocess.run(command, env=environment, text=True, capture_output=True)
    assert process.returncode == 2
    assert (
        f"error: {disk}/runs: nothing can be written there (Read-only file system); choose another" in process.stderr
    )


def test_a_clock_that_starts_at_zero(write_recipe, run, monkeypatch):
    started = time.time()
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - started)
    recipe = write_recipe("a", training={"num_train_epochs": 1})
    status, _, err = run(recipe)
    assert status == 0, err
    assert json.loads(Path("runs/a/results.json").read_text())["train"]["seconds"] > 0


FULL = """
import shutil, sys
from types import SimpleNamespace
from hf_seg import train
usage = shutil.disk_usage
shutil.disk_usage = lambda path: SimpleNamespace(free=10**12)  # what was free is taken by somebody else, later
sys.exit(train.main())
"""


def fail_at(at_step, step):
    """Let the first launch fail at a step, and none after it."""
    failed = []

    def fail_once(trainer, inputs):
        if not failed:
            failed.append(True)
            raise ZeroDivisionError

    at_step(step, fail_once)


def test_a_clock_that_was_set_back(write_recipe, run, at_step):
    recipe = write_recipe("a", training={"num_train_epochs": 4})
    fail_at(at_step, 10)
    assert run(recipe)[0] == 1
    for folder in Path("runs/a").glob("checkpoint-*"):
        os.utime(folder, (time.time() + 3600,) * 2)
    status, _, err = run(recipe)
    assert status == 0, err
    kept = {path.name for path in Path("runs/a").glob("checkpoint-*")}
    best = json.loads(Path("runs/a/results.json").read_text())["train"]["best_step"]
    assert kept == ({f"checkpoint-{best}", "checkpoint-16"} if best != 16 else {"checkpoint-12", "checkpoint-16"})


def test_a_best_checkpoint_that_is_gone(write_recipe, run, at_step, monkeypatch):
    recipe = write_recipe("a", training={"num_train_epochs": 4})
    fail_at(at_step, 10)
    scores = iter([0.5, 0.1])  # of the first two epochs
    original = SegTrainer._add_batch

    def add_batch(self, batch, compute_result):
        metrics = original(self, batch, compute_result)
        return metrics | {"mean_iou": next(scores)} if compute_result else metrics

    with monkeypatch.context() as patch:
        patch.setattr(SegTrainer, "_add_batch", add_batch)
        assert run(recipe)[0] == 1
    shutil.rmtree("runs/a/checkpoint-4")
    before = sorted(Path("runs/a").rglob("*"))
    status, _, err = run(recipe)
    assert status == 1 and sorted(Path("runs/a").rglob("*")) == before
    assert "error: a: runs/a/checkpoint-4: the best checkpoint so far is damaged: incomplete; put it back, or" in err


@pytest.mark.slow
@pytest.mark.parametrize("seen_before", [True, False])
def test_a_full_disk(write_recipe, tmp_path, seen_before):
    found = small_disk(tmp_path, "8m")  # a checkpoint of the tiny SegFormer takes 5.4 MB
    if found is None:
        pytest.skip("mounting a file system is not allowed here")
    shell, mount, disk = found
    recipe = write_recipe("a", training={"num_train_epochs": 3})
    (tmp_path / "full.py").write_text(FULL)
    script = TRAIN if seen_before else tmp_path / "full.py"
    words = f"{sys.executable} {script} {recipe} --output_dir {disk}/runs"
    process = subprocess.run(
        [
            *shell,
            f"{mount} && {words}; status=$?; ls {disk}/runs/a; cat {disk}/runs/a/checkpoint-4/checksums.json; "
            "exit $status",
        ],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        text=True,
        capture_output=True,
    )
    assert process.returncode == 1
    if seen_before:
        assert "checkpoints need up to" in process.stderr and "free disk space" in process.stderr
        return
    assert "/runs/a/checkpoint-8: the checkpoint cannot be written (" in process.stderr
    assert f"training continues from {disk}/runs/a/checkpoint-4" in process.stderr
    listed = process.stdout.splitlines()
    assert "checkpoint-4" in listed and "checkpoint-8" not in listed
    assert '"model.safetensors": [' in process.stdout  # the older one is whole


class DyingPairs(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where the memory is full


def test_a_loader_process_that_is_killed(capsys):
    def train(run):
        list(torch.utils.data.DataLoader(DyingPairs(), num_workers=1))

    run = SimpleNamespace(recipe=SimpleNamespace(name="a", encoder_recipe=None))
    assert run_all([run], train) == ([], {"a"})
    (line,) = capsys.readouterr().err.splitlines()  # no traceback
    assert line.startswith("error: a: a process that loads the pictures has ended (DataLoader worker (pid")
    assert "set training.dataloader_num_workers to a smaller number (0: no such processes) and launch again" in line


def test_a_disk_that_is_full_outside_of_a_checkpoint(capsys):
    def train(run):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/run.json")

    run = SimpleNamespace(recipe=SimpleNamespace(name="a", encoder_recipe=None))
    assert run_all([run], train) == ([], {"a"})
    (line,) = capsys.readouterr().err.splitlines()  # no traceback
    expected = "[Errno 28] No space left on device: 'runs/a/run.json'. Free disk space. Then launch again."
    assert line == f"error: a: {expected}"
