"""A run killed and relaunched, and a run after another in one launch, end with the bits of an undisturbed run."""

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from hf_seg.data import load_data
from hf_seg.recipe import load_recipes
from hf_seg.runs.folder import Run
from hf_seg.training import callbacks
from hf_seg.training.callbacks import StopWhenAsked
from hf_seg.training.checkpoints import last_checkpoint
from hf_seg.training.setup import build_initial_model, build_trainer

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


class StopAt(TrainerCallback):
    """As a signal does: saves and stops after a step, in the middle of an epoch or not."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        return control


def test_the_time_of_all_launches_is_recorded(write_recipe, tmp_path, monkeypatch):
    data = {"image_size": 32, "max_train_samples": 12, "max_validation_samples": 1}
    (recipe,) = load_recipes([write_recipe("a", data=data, training={"num_train_epochs": 2})])  # of two steps each
    run, data = Run(recipe, tmp_path / "run"), load_data(recipe.data)

    def launch(begin, *stop):
        """A launch of which each step takes 10 seconds by the clock; gives what is recorded."""
        trainer = build_trainer(run, data, build_initial_model(run, data.spec)[0], stop, quiet=True)
        clock = SimpleNamespace(perf_counter=lambda: begin + 10 * trainer.state.global_step)
        monkeypatch.setattr(callbacks, "time", clock)
        trainer.train(resume_from_checkpoint=last_checkpoint(run.folder))
        return trainer.summary()

    for stop in (1, 3):
        assert launch(1000 * stop, StopAt(stop))["seconds"] == 10 * stop
    for begin in (7000, 8000):  # the second resumes after the last step, as after a kill in the test
        summary = launch(begin)
        assert (summary["steps"], summary["seconds"], summary["images_per_second"]) == (4, 40, 24 / 40)


def test_a_run_that_was_moved_ends_with_its_best_checkpoint(write_recipe, tmp_path):
    data = {"image_size": 32, "max_train_samples": 8, "max_validation_samples": 1}
    (recipe,) = load_recipes([write_recipe("a", data=data, training={"learning_rate": 0.1})])
    data = load_data(recipe.data)

    def train(place):
        run = Run(recipe, tmp_path / place)
        trainer = build_trainer(run, data, build_initial_model(run, data.spec)[0], quiet=True)
        trainer.train(resume_from_checkpoint=last_checkpoint(run.folder))
        return trainer.state.best_global_step, trainer.state.best_model_checkpoint, trainer.validate()["mean_iou"]

    best, _, score = train("here")
    assert best in (1, 2)
    (tmp_path / "here").rename(tmp_path / "there")
    again = train("there")
    assert again == (best, str(tmp_path / "there" / f"checkpoint-{best}"), score)


def test_signals_to_the_group_do_not_reach_workers(write_recipe, tmp_path):
    (recipe,) = load_recipes([write_recipe("a", data={"cache": False}, training={"dataloader_num_workers": 1})])
    data = load_data(recipe.data)
    run = Run(recipe, tmp_path)
    trainer = build_trainer(run, data, build_initial_model(run, data.spec)[0])
    batches = iter(trainer.get_train_dataloader())
    next(batches)
    workers = multiprocessing.active_children()
    assert workers and all(os.getpgid(worker.pid) == worker.pid for worker in workers)
    assert len([*batches]) == 3


def test_a_signal_whose_message_nobody_reads(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    stop = StopWhenAsked()
    with os.fdopen(writer, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        stop._note(signal.SIGINT, None)
    assert stop.signum == signal.SIGINT
