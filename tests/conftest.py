"""Shared by the tests that train: tiny recipes, and launches of the real program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"

# Small enough to train in seconds on two cores, whole enough that every part of the real models is there.
TINY_MODELS = {
    "fcn": {"arch": "fcn", "encoder": "resnet10t"},
    "segformer": {
        "arch": "segformer",
        "config": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 32},
    },
}


@pytest.fixture
def tiny_models():
    """The `model` sections that [`write_recipe`] uses, by architecture."""
    return TINY_MODELS


@pytest.fixture
def write_recipe(tmp_path):
    """Write `<name>.json` with a tiny recipe: `write_recipe("a", arch="fcn", training={...}, data={...})`."""

    def write(name: str, *, arch: str = "segformer", model=None, data=None, training=None) -> Path:
        recipe = {
            "model": TINY_MODELS[arch] | {"init": "scratch"} | (model or {}),
            "data": {
                "name": "synthetic_pet",
                "max_train_samples": 32,
                "max_validation_samples": 10,
                "max_test_samples": 10,
            }
            | (data or {}),
            "training": {
                "num_train_epochs": 2,
                "global_train_batch_size": 8,
                "eval_every_epochs": 1,
                "bf16": False,
                "report_to": "none",
                "disable_tqdm": True,
            }
            | (training or {}),
        }
        path = tmp_path / "recipes" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(recipe, indent=2))
        return path

    return write


@pytest.fixture
def launch(tmp_path):
    """Start the real program as a user does; returns the finished process, its output captured as text."""

    def start(*arguments, script: Path = ROOT / "hf_seg" / "train.py", processes: int = 1, check: bool = True):
        if processes == 1:
            launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "1"]
        else:
            launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        process = subprocess.run(
            [sys.executable, "-m", *launcher, str(script), *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"ACCELERATE_USE_CPU": "true"},
            text=True,
            capture_output=True,
        )
        if check and process.returncode:
            raise AssertionError(f"{process.args} ended with {process.returncode}\n{process.stdout}\n{process.stderr}")
        return process

    return start
