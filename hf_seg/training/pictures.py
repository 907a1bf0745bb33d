"""Show four validation pictures with their predicted masks in the trackers that can show pictures."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from hf_seg.processes import say_once
from hf_seg.runs.plots import plot_samples

if TYPE_CHECKING:
    from hf_seg.training.trainer import SegTrainer

NAME = "eval/samples"  # beside the scores of the validation, "eval/mean_iou"


class TrackedPictures(TrainerCallback):
    """Sends evenly spaced pictures of the validation split, with true and predicted masks, to the trackers at each
    validation. They are drawn like the test samples in a run's folder. Does nothing without a tracker."""

    def __init__(self, trainer: SegTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if any(isinstance(each, WandbCallback) for each in self.trainer.callback_handler.callbacks):
            say_once("four validation pictures are uploaded to W&B at each validation")

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        kinds = (TensorBoardCallback, TrackioCallback, WandbCallback)
        trackers = [each for each in self.trainer.callback_handler.callbacks if isinstance(each, kinds)]
        if not trackers or "eval_loss" not in metrics:  # else it evaluates the best checkpoint
            return
        samples, spec = self.trainer.sample("validation"), self.trainer.data.spec  # on all ranks, for a divided model
        if not state.is_world_process_zero:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples.png"
            plot_samples(*samples, spec.class_names, spec.palette, spec.ignore_index, path)
            for tracker in trackers:
                if isinstance(tracker, TensorBoardCallback):
                    picture = np.asarray(Image.open(path).convert("RGB"))
                    tracker.tb_writer.add_image(NAME, picture, state.global_step, dataformats="HWC")
                else:
                    library = importlib.import_module("trackio" if isinstance(tracker, TrackioCallback) else "wandb")
                    library.log({NAME: library.Image(str(path)), "train/global_step": state.global_step})
