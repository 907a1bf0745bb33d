"""Ctrl-C and SIGTERM: the run ends by itself, and a relaunch ends with the bits of an undisturbed run."""

import json
from pathlib import Path

import pytest

SIGNALLED = Path(__file__).parent / "train_and_signal.py"
# four steps an epoch, validation every second epoch: step 10 is in the middle of the third
OPTIONS = {"data": {"augment": "standard"}, "training": {"num_train_epochs": 4, "eval_every_epochs": 2}}

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Weights and scores of the run that nothing happens to."""
    return {}


def outcome(run):
    """Weights, and all scores."""
    results = json.loads((run / "results.json").read_text())
    validations = [(e["epoch"], e["eval_loss"]) for e in results["train"]["history"] if "eval_loss" in e]
    weights = (run / "model.safetensors").read_bytes()
    return {"weights": weights, "validations": validations} | {key: results[key] for key in ("validation", "test")}


@pytest.mark.parametrize(
    ("signal", "when", "status", "checkpoint"),
    [
        ("SIGTERM", "step", 143, "checkpoint-10"),
        ("SIGINT", "step", 130, "checkpoint-10"),
        ("SIGTERM", "last step of an epoch", 143, "checkpoint-4"),
        ("SIGTERM", "last step before a validation", 143, "checkpoint-8"),
        ("SIGTERM", "last step", 143, "checkpoint-16"),
        ("SIGTERM", "evaluation", 143, "checkpoint-16"),
        ("SIGTERM", "saving", 143, "checkpoint-16"),
        ("SIGINT", "test", 130, "checkpoint-16"),
    ],
)
def test_a_signal_loses_nothing(write_recipe, launch, tmp_path, undisturbed, signal, when, status, checkpoint):
    recipe = write_recipe("a", **OPTIONS)
    if not undisturbed:
        launch(recipe, "--output_dir", tmp_path / "alone")
        undisturbed |= outcome(tmp_path / "alone" / "a")

    run = tmp_path / "runs" / "a"
    stopped = launch(recipe, "--output_dir", run.parent, signal, when, script=SIGNALLED, check=False)
    assert stopped.returncode == status, stopped.stderr
    assert (
        f"{signal}: saving and stopping" in stopped.stderr and f"stopped by {signal}; launch again" in stopped.stderr
    )
    assert "Traceback" not in stopped.stderr
    assert (run / checkpoint / "checksums.json").exists() and not (run / "results.json").exists()

    launch(recipe, "--output_dir", run.parent)
    assert outcome(run) == undisturbed


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_loader_processes_outlive_a_signal_and_no_longer(write_recipe, launch, tmp_path, signal):
    keys = {"data": {"cache": False}, "training": OPTIONS["training"] | {"dataloader_num_workers": 2}}
    stopped = launch(write_recipe("a", **keys), signal, "step", script=SIGNALLED, check=False)
    assert stopped.returncode == {"SIGTERM": 143, "SIGINT": 130}[signal], stopped.stderr
    assert stopped.stderr.count("saving and stopping") == 1 and "Traceback" not in stopped.stderr
    assert (tmp_path / "runs" / "a" / "checkpoint-10" / "checksums.json").exists()
