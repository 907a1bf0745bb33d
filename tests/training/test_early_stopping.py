"""training.early_stopping_patience: when a training ends, and one that goes on from a checkpoint."""

import shutil

import pytest
import torch

from hf_seg.data import load_data
from hf_seg.recipe import load_recipes
from hf_seg.runs.folder import Run
from hf_seg.training.setup import build_initial_model, build_trainer

SCORES = [0.3, 0.5, 0.4, 0.5, 0.45, 0.6, 0.7]  # of the validations; an equal one is no better one


@pytest.fixture
def train(write_recipe, tmp_path, monkeypatch):
    """A training of seven epochs of one step, with made-up scores; gives the trainer."""

    def start(name, checkpoint=None, **training):
        data = {"image_size": 32, "max_train_samples": 8, "max_validation_samples": 1}
        training = {"num_train_epochs": 7, "save_total_limit": None} | training
        (recipe,) = load_recipes([write_recipe("a", data=data, training=training)])
        run, data = Run(recipe, tmp_path / name), load_data(recipe.data)
        trainer = build_trainer(run, data, build_initial_model(run, data.spec)[0])
        add_batch = trainer.compute_metrics

        def made_up(batch, compute_result):
            scores = add_batch(batch, compute_result)
            return scores | {"mean_iou": SCORES[trainer.state.global_step - 1]} if scores else scores

        trainer.compute_metrics = made_up
        if checkpoint:  # of a run that was moved
            shutil.copytree(checkpoint.parent, tmp_path / name, dirs_exist_ok=True)
            checkpoint = tmp_path / name / checkpoint.name
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return trainer

    return start


def losses(trainer):
    return [entry["loss"] for entry in trainer.summary()["history"] if "loss" in entry]


def test_a_training_ends_when_its_score_has_not_grown(train, tmp_path, capsys):
    stopped = train("stopped", early_stopping_patience=2)
    summary = stopped.summary()
    assert (summary["epochs"], summary["steps"], summary["best_step"], summary["stopped_early"]) == (4, 4, 2, True)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "stopped after epoch 4: no better validation mIoU in 2 validations"
    )
    stopped.validate()  # of the best checkpoint: none that counts
    assert capsys.readouterr().err == ""

    # interrupted between the two validations, and after both, before the run was finished
    for step in (3, 4):
        checkpoint = tmp_path / "stopped" / f"checkpoint-{step}"
        again = train(f"again-{step}", checkpoint, early_stopping_patience=2)
        assert losses(again) == losses(stopped) and again.summary()["stopped_early"] is True
        assert "stopped after epoch 4: " in capsys.readouterr().out
        for name, value in stopped.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[name], value), name


def test_a_training_that_ends_with_its_last_epoch_was_not_stopped(train, capsys):
    trainer = train("a", num_train_epochs=4, early_stopping_patience=2)
    assert trainer.summary()["stopped_early"] is False and "stopped" not in capsys.readouterr().out


@pytest.mark.parametrize(("epochs", "every", "said"), [(4, 2, True), (5, 2, False)])
def test_a_patience_that_no_training_of_this_length_needs_is_said(train, capsys, epochs, every, said):
    train("a", num_train_epochs=epochs, eval_every_epochs=every, early_stopping_patience=2)
    sentence = "early_stopping_patience 2 never stops a training of 2 validations"
    assert (sentence in capsys.readouterr().out.splitlines()) is said
