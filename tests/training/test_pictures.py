"""The pictures that trackers get at each validation."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerState
from transformers.integrations import WandbCallback

from hf_seg.data import load_data
from hf_seg.recipe import load_recipes
from hf_seg.runs.folder import Run
from hf_seg.runs.plots import plot_samples
from hf_seg.training.pictures import TrackedPictures
from hf_seg.training.setup import build_initial_model, build_trainer


def test_tensorboard_has_what_the_saved_model_makes_of_the_pictures(write_recipe, tmp_path):
    data = {"image_size": 32, "resize": "crop", "max_train_samples": 8, "max_validation_samples": 6}
    training = {"report_to": "tensorboard", "ema_decay": 0.5, "num_train_epochs": 4, "eval_every_epochs": 2}
    (recipe,) = load_recipes([write_recipe("a", data=data, training=training | {"learning_rate": 0.01})])
    run, data = Run(recipe, tmp_path / "run"), load_data(recipe.data)
    trainer = build_trainer(run, data, build_initial_model(run, data.spec)[0], quiet=True)
    sample, drawn = trainer.sample, {}

    def watched(split):
        drawn[trainer.state.global_step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return sample(split)

    trainer.sample = watched
    trainer.train()
    trainer.validate()  # of the best checkpoint, whose pictures are there already

    (folder,) = (tmp_path / "run" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    pictures = {event.step: event.encoded_image_string for event in events.Images("eval/samples")}
    assert [*pictures] == [2, 4]
    best = drawn[trainer.state.best_global_step]  # the trainer ends with the best checkpoint, which has the average
    assert all(torch.equal(best[name], value) for name, value in trainer.model.state_dict().items())
    samples = sample("validation")
    assert len(samples[0]) == 4
    plot_samples(*samples, data.spec.class_names, data.spec.palette, data.spec.ignore_index, tmp_path / "best.png")
    shown = np.asarray(Image.open(io.BytesIO(pictures[trainer.state.best_global_step])).convert("RGB"))
    assert np.array_equal(shown, np.asarray(Image.open(tmp_path / "best.png").convert("RGB")))


@pytest.mark.slow
def test_trackio_has_the_pictures(write_recipe, launch, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    data = {"image_size": 32, "max_train_samples": 8, "max_validation_samples": 2, "max_test_samples": 1}
    launch(write_recipe("a", data=data, training={"report_to": "trackio"}), "--output_dir", tmp_path / "runs")
    pictures = [*(tmp_path / "trackio" / "media").rglob("*.png")]
    assert [Image.open(path).width for path in pictures] == [1200, 1200]


def test_wandb_gets_a_file_and_without_a_tracker_nothing_is_computed(monkeypatch, finished, capsys):
    logged, asked = [], []
    wandb = SimpleNamespace(Image=lambda path: Image.open(path).size[0], log=logged.append)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with np.load(finished / "test_samples.npz") as file:
        samples = [file[name] for name in ("pixel_values", "labels", "predictions")]
    spec = SimpleNamespace(class_names=["a", "b", "c"], palette=[(0, 0, 0)] * 3, ignore_index=255)
    trainer = SimpleNamespace(
        callback_handler=SimpleNamespace(callbacks=[]),
        data=SimpleNamespace(spec=spec),
        sample=lambda split: asked.append(split) or samples,
    )
    validated = {"args": None, "state": TrainerState(global_step=7), "control": None, "metrics": {"eval_loss": 1.0}}
    TrackedPictures(trainer).on_evaluate(**validated)
    assert not asked
    TrackedPictures(trainer).on_train_begin(None, None, None)
    assert not capsys.readouterr().out
    trainer.callback_handler.callbacks = [WandbCallback.__new__(WandbCallback)]
    TrackedPictures(trainer).on_train_begin(None, None, None)
    assert capsys.readouterr().out == "four validation pictures are uploaded to W&B at each validation\n"
    TrackedPictures(trainer).on_evaluate(**validated | {"metrics": {"validation_loss": 1.0}})
    assert not asked
    TrackedPictures(trainer).on_evaluate(**validated)
    assert asked == ["validation"] and logged == [{"eval/samples": 1200, "train/global_step": 7}]
