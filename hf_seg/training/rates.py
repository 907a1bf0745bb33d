"""Learning rates: their schedule, and those of the parts of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import meta_device_safe_creation_ops

from hf_seg.models.weights import encoder_of
from hf_seg.problem import RecipeError
from hf_seg.recipe.keys import TrainingRecipe


def exponential(training: TrainingRecipe, steps_per_epoch: int, warmup: int) -> Callable[[int], float]:
    """The factor on the learning rate after so many steps of a training: `lr_decay_per_epoch` after each epoch, and in
    the first `warmup` steps also the share of them that is done."""

    def factor(step: int) -> float:
        begun = min(1, step / warmup) if warmup else 1
        return begun * training.lr_decay_per_epoch ** (step // steps_per_epoch)

    return factor


def split_groups(optimizer: torch.optim.Optimizer, model: PreTrainedModel, training: TrainingRecipe) -> None:
    """Divide a new optimiser's groups by learning rate, those of the head first. Where all rates are equal, the groups
    stay as they are.

    Raises:
        RecipeError: when `training.layer_lr_decay` has no effect on this encoder.
    """
    factors, groups = _factors(model, training), []
    for group in optimizer.param_groups:
        by_factor = defaultdict(list)
        for parameter in group["params"]:
            by_factor[factors.get(parameter, 1.0)].append(parameter)
        groups += [group | {"params": part, "lr": group["lr"] * factor} for factor, part in by_factor.items()]
    if any(factor != 1 for factor in factors.values()):
        head = optimizer.defaults["lr"]
        optimizer.param_groups[:] = sorted(groups, key=lambda group: group["lr"] != head)  # the first one's is logged


def _factors(model: PreTrainedModel, training: TrainingRecipe) -> dict[nn.Parameter, float]:
    """The encoder's parameters, each with the factor on its learning rate."""
    named = dict(encoder_of(model).named_parameters())
    scales = dict.fromkeys(named, 1.0)
    if training.layer_lr_decay is not None:
        scales = _layer_scales(model.config.encoder, training.layer_lr_decay)
        # where timm has flattened its model, "stages.0.downsample" is called "stages_0.downsample"
        scales = {name: scales.get(name.replace(".", "_")) for name in named}
        if None in scales.values():
            what = f"timm does not say to which layers of {model.config.encoder} its parameters belong"
            raise RecipeError(
                "training.layer_lr_decay", what, "leave it out; encoder_lr_multiplier is for any encoder"
            )
    return {parameter: training.encoder_lr_multiplier * scales[name] for name, parameter in named.items()}


def _layer_scales(encoder: str, decay: float) -> dict[str, float]:
    """`decay` to the power of the number of layers between a parameter and the features' end, counted from 1, by the
    parameter's name with "_" for each dot.

    A model that gives features has lost timm's table of layers, so it is that of the whole model, whose classifier is
    the last layer: here this is the head.
    """
    with torch.device("meta"), meta_device_safe_creation_ops():
        whole = timm.create_model(encoder)
    groups = param_groups_layer_decay(whole, layer_decay=decay)
    scales = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    return {name.replace(".", "_"): scales[parameter] for name, parameter in whole.named_parameters()}
