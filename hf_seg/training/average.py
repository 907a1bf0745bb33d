"""The moving average of a training's weights, which validation, test and the saved model use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from hf_seg.training.checkpoints import load_weights

RAW = "raw_weights.pt"  # in a checkpoint: the weights that training continues from; its model has the average


class WeightAverage(TrainerCallback):
    """Exponential moving average: after each step, average ← share · average + (1 - share) · weights.

    The share is `decay`, but at most 1 - n^(-2/3) in step n, so that the first weights are soon forgotten. Batch-norm
    statistics are averaged in the same way. timm's `ModelEmaV3` implements both.

    Args:
        model (`PreTrainedModel`): on its device, where the average takes as much memory as the model.
        decay (`float`): above 0 and below 1.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    def __init__(self, model: PreTrainedModel, decay: float):
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=True)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.ema.update(model, step=state.global_step)

    @contextmanager
    def placed_in(self, model: PreTrainedModel) -> Iterator[None]:
        """Give the model the average while the block runs."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: PreTrainedModel) -> None:
        # swap the values and not the tensors, since the optimiser and DDP refer to the tensors
        for ours, theirs in zip(_tensors(self.ema.module), _tensors(model), strict=True):
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)

    def save_raw(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the weights that training continues from into a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / RAW)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Resume from a checkpoint: its model is the average, and `model` gets the weights in [`RAW`]."""
        load_weights(self.ema.module, str(folder))
        model.load_state_dict(torch.load(folder / RAW, map_location="cpu", weights_only=True))


def _tensors(model: PreTrainedModel) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
