"""The files for `accelerate launch` in `recipes/accelerate`: they start the ranks that they promise."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.config.config_args import load_config_from_file

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"
IN_EVAL_MODE = Path(__file__).parents[1] / "train_in_eval_mode.py"
# 255 is in these masks, unevenly; 11 and 7 images leave an uneven last batch to two ranks
DATA = {"name": "synthetic_cityscapes", "max_train_samples": 64, "max_validation_samples": 11, "max_test_samples": 7}
EIGHT_STEPS = {"num_train_epochs": 1, "logging_strategy": "steps", "logging_steps": 1}
# each rank keeps an average of its own; it is far from the weights themselves
AVERAGED = {"ema_decay": 0.9, "encoder_lr_multiplier": 0.5}


@pytest.mark.parametrize("config", sorted(CONFIGS.iterdir()), ids=lambda path: path.name)
def test_a_config_leaves_the_precision_to_the_recipe(config):
    # any other value reaches Trainer by the environment, and overrules `training.bf16: false` without a word
    assert load_config_from_file(str(config)).mixed_precision == "no"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch_on_cpus(machines: list[list[str]], *arguments) -> None:
    """Run one `accelerate launch` for each list of its options at the same time; all of them have to succeed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "cpu.yaml")]
    launchers = [
        subprocess.Popen(
            [*command, "--num_processes", "2", *options, str(IN_EVAL_MODE), *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for options in machines
    ]
    try:
        outputs = [launcher.communicate(timeout=180)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.terminate()  # torch's agent takes its ranks along; nothing to do for one that has ended
    assert [launcher.returncode for launcher in launchers] == [0] * len(machines), "\n".join(outputs)


@pytest.mark.slow
def test_two_ranks_on_one_machine_and_on_two_score_as_one_process_does(write_recipe, launch, tmp_path):
    recipe = write_recipe("launched", data=DATA, training=EIGHT_STEPS | AVERAGED)
    launch(recipe, "--output_dir", tmp_path / "one-process", script=IN_EVAL_MODE)
    launch_on_cpus([[]], recipe, "--output_dir", tmp_path / "one-machine")
    meet = ["--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())]
    two = [[*meet, "--machine_rank", "0"], [*meet, "--machine_rank", "1"]]
    launch_on_cpus(two, recipe, "--output_dir", tmp_path / "two-machines")

    def read(way: str) -> dict:
        return json.loads((tmp_path / way / "launched" / "results.json").read_text())

    def losses(result: dict) -> np.ndarray:
        return np.array([entry["loss"] for entry in result["train"]["history"] if "loss" in entry])

    reference = read("one-process")
    assert reference["train"]["world_size"] == 1 and len(losses(reference)) == 8
    for way in ("one-machine", "two-machines"):
        result = read(way)
        assert result["train"]["world_size"] == 2 and result["environment"]["device"] == "cpu", way
        np.testing.assert_allclose(losses(result), losses(reference), rtol=1e-4, err_msg=way)
        for split in ("validation", "test"):
            ours, theirs = result[split], reference[split]
            assert np.sum(ours["confusion_matrix"]) == np.sum(theirs["confusion_matrix"]) > 20_000
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3), (way, split)
            assert ours["mean_iou"] == pytest.approx(theirs["mean_iou"], abs=1e-3), (way, split)
