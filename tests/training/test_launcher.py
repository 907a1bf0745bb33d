"""`hf-seg train --num_processes N`: what it starts, and how it ends."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate.commands import launch
from torch.distributed.elastic.agent.server import api
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import hf_seg.train
from hf_seg import cli


@pytest.mark.slow
def test_two_processes(write_recipe, tmp_path):
    recipe = write_recipe("a", training={"max_steps": 1, "per_device_eval_batch_size": 2})
    command = [sys.executable, "-m", "hf_seg.cli", "train", str(recipe), "--num_processes", "2"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command += ["--training.seed", "7"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "accelerate" not in done.stderr and "OMP_NUM_THREADS" not in done.stderr
    results = json.loads((tmp_path / "runs" / "a" / "results.json").read_text())
    train = results["train"]
    assert (train["world_size"], train["steps"], train["seed"]) == (2, 1, 7)
    # after a step each process has batch-norm statistics of its own, and the checkpoint has those of the first
    [validated] = [entry["eval_loss"] for entry in train["history"] if "eval_loss" in entry]
    assert results["validation"]["loss"] == validated


def fail(exitcode):
    return ChildFailedError("train", {1: ProcessFailure(local_rank=1, pid=1, exitcode=exitcode, error_file="")})


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (fail(2), 2, ""),
        (fail(-9), 137, "error: SIGKILL ended process 1; launch again to continue\n"),
        (SignalException("", signal.SIGINT), 130, "stopped by SIGINT; launch again to continue\n"),
    ],
)
def test_how_the_launcher_ends(monkeypatch, capsys, caplog, error, status, message):
    started = []

    def start(args):
        started.append(args)
        api.logger.warning("Received 2 death signal")  # as torch does at Ctrl-C
        if error:
            raise error

    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.setattr(launch, "launch_command", start)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    arguments = ["a", "b.json", "--seeds", "0,1", "--training.seed", "-1", "--overwrite"]
    assert cli.main(["train", *arguments[:2], "--num_processes=2", *arguments[2:]]) == status
    assert capsys.readouterr() == ("", message)
    assert not caplog.records
    [args] = started
    assert args.num_processes == 2 and args.multi_gpu and not args.module
    assert os.path.samefile(args.training_script, hf_seg.train.__file__)  # whatever is called hf_seg in this folder
    assert args.training_script_args == arguments and os.environ["ACCELERATE_USE_CPU"] == "true"


def test_more_processes_than_gpus(monkeypatch, capsys):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert cli.main(["train", "a", "--num_processes", "2"]) == 2
    expected = "--num_processes 2: each process needs its own GPU, but there is one; start fewer processes\n"
    assert capsys.readouterr().err == f"error: {expected}"


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.setattr("hf_seg.train.main", lambda argv, prog: (argv, prog))
    assert cli.main(["train", "a", "--num_processes", "1", "--seeds", "0"]) == (["a", "--seeds", "0"], "hf-seg train")
    assert cli.main(["train", "--help"]) == (["--help"], "hf-seg train")
