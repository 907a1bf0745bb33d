"""Ctrl-C and SIGTERM: the run ends by itself, and a relaunch ends with the bits of an undisturbed run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SIGNALLED = Path(__file__).parent / "train_and_signal.py"
TRAIN = Path(__file__).parents[2] / "hf_seg" / "train.py"
# four steps an epoch, validation every second epoch: step 10 is in the middle of the third
OPTIONS = {"data": {"augment": "standard"}, "training": {"num_train_epochs": 4, "eval_every_epochs": 2}}

pytestmark = [pytest.mark.faults, pytest.mark.slow]


def start(script, *arguments):
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        text=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights and scores of the run that nothing happens to."""
    return {}


@pytest.mark.parametrize(
    ("signal", "when", "status", "checkpoint"),
    [
        ("SIGTERM", "step", 143, "checkpoint-10"),
        ("SIGINT", "step", 130, "checkpoint-10"),
        ("SIGTERM", "evaluation", 143, "checkpoint-16"),
        ("SIGTERM", "saving", 143, "checkpoint-16"),
        ("SIGINT", "test", 130, "checkpoint-16"),
    ],
)
def test_a_signal_loses_nothing(write_recipe, tmp_path, undisturbed, signal, when, status, checkpoint):
    recipe = write_recipe("a", **OPTIONS)
    if not undisturbed:
        done = start(TRAIN, recipe, "--output_dir", tmp_path / "alone")
        assert done.returncode == 0, done.stderr
        undisturbed["weights"] = (tmp_path / "alone" / "a" / "model.safetensors").read_bytes()
        undisturbed["test"] = json.loads((tmp_path / "alone" / "a" / "results.json").read_text())["test"]

    run = tmp_path / "runs" / "a"
    stopped = start(SIGNALLED, recipe, "--output_dir", run.parent, signal, when)
    assert stopped.returncode == status, stopped.stderr
    assert (
        f"{signal}: saving and stopping" in stopped.stderr and f"stopped by {signal}; launch again" in stopped.stderr
    )
    assert "Traceback" not in stopped.stderr
    assert (run / checkpoint / "checksums.json").exists() and not (run / "results.json").exists()

    again = start(TRAIN, recipe, "--output_dir", run.parent)
    assert again.returncode == 0, again.stderr
    assert (run / "model.safetensors").read_bytes() == undisturbed["weights"]
    assert json.loads((run / "results.json").read_text())["test"] == undisturbed["test"]
