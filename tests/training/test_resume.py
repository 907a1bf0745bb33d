"""A run killed and relaunched, and a run after another in one launch, end with the bits of an undisturbed run."""

import json
from pathlib import Path

import pytest

DIES = Path(__file__).parents[1] / "train_and_die.py"
# four steps an epoch; augmentation and dropout draw random numbers whose state must survive
OPTIONS = {"data": {"augment": "standard"}, "training": {"num_train_epochs": 4}}


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "other"), [("fcn", "segformer"), ("segformer", "fcn")])
def test_bits_of_an_undisturbed_run(write_recipe, launch, tmp_path, input_tree, arch, other):
    recipe = write_recipe("a", arch=arch, **OPTIONS)
    first = write_recipe("first", arch=other, training={"num_train_epochs": 1, "bf16": True, "seed": 5})

    launch(recipe, "--output_dir", tmp_path / "alone")
    weights = (tmp_path / "alone" / "a" / "model.safetensors").read_bytes()
    scores = json.loads((tmp_path / "alone" / "a" / "results.json").read_text())["test"]

    launch(first, recipe, "--output_dir", tmp_path / "together")
    assert (tmp_path / "together" / "a" / "model.safetensors").read_bytes() == weights

    died = launch(recipe, "--output_dir", tmp_path / "killed", script=DIES, check=False)
    run = tmp_path / "killed" / "a"
    assert died.returncode != 0 and not (run / "results.json").exists()
    assert (run / "checkpoint-8" / "trainer_state.json").exists() and not (run / "checkpoint-12").exists()
    # a checkpoint that the kill cut short is ignored
    (run / "checkpoint-9").mkdir()
    (run / "checkpoint-9" / "trainer_state.json").write_text('{"global_st')
    input_tree.written.add(str(run / "checkpoint-9" / "trainer_state.json"))  # as if the program had
    again = launch(recipe, "--output_dir", tmp_path / "killed")
    assert "checkpoint-9: trainer_state.json cannot be read: " in again.stdout
    assert "; the checkpoint is ignored" in again.stdout
    assert (run / "model.safetensors").read_bytes() == weights
    assert json.loads((run / "results.json").read_text())["test"] == scores

    # and a finished run is skipped, with a line that says so
    finished = launch(recipe, "--output_dir", tmp_path / "killed")
    assert "a: finished, in" in finished.stdout and "| a " in finished.stdout
