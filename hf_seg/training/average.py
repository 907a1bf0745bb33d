"""The moving average of a training's weights, which is what validation, test and the saved model have."""

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

RAW = "raw_weights.pt"  # of a checkpoint: the weights that training goes on from; its model has the average


class WeightAverage(TrainerCallback):
    """After each step, a share of the average is kept, and the rest is the new weights.

    The share is `decay`, and less in the first steps: 1 - n^(-2/3) in step n, so that the first weights are forgotten.
    Batch-norm statistics are averaged with the weights that they belong to. timm's `ModelEmaV3` has both rules.

    Args:
        model (`PreTrainedModel`): on its device, where the average needs as much memory again.
        decay (`float`): the share, above 0 and below 1.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    """

    def __init__(self, model: PreTrainedModel, decay: float):
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=True)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.ema.update(model, step=state.global_step)

    @contextmanager
    def placed_in(self, model: PreTrainedModel) -> Iterator[None]:
        """While the block runs, the model has the average."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @torch.no_grad()
    def _swap(self, model: PreTrainedModel) -> None:
        # values, since the optimiser and DDP hold the tensors
        for ours, theirs in zip(_tensors(self.ema.module), _tensors(model), strict=True):
            kept = theirs.clone()
            theirs.copy_(ours)
            ours.copy_(kept)

    def save_raw(self, model: PreTrainedModel, folder: Path) -> None:
        """Write the weights that training goes on from into a checkpoint."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / RAW)

    def load(self, model: PreTrainedModel, folder: Path) -> None:
        """Go on from a checkpoint: the average is that of its model, and `model` gets the weights beside it."""
        load_weights(self.ema.module, str(folder))
        model.load_state_dict(torch.load(folder / RAW, map_location="cpu", weights_only=True))


def _tensors(model: PreTrainedModel) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
