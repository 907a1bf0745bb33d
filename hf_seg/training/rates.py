"""Learning rates: the exponential schedule, and the rates of the parts of a model."""

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
    """Return a function from the number of steps done to the factor on the learning rate. It is multiplied by
    `lr_decay_per_epoch` after each epoch, and in the first `warmup` steps also by the share of them that is done."""

    def factor(step: int) -> float:
        begun = min(1, step / warmup) if warmup else 1
        return begun * training.lr_decay_per_epoch ** (step // steps_per_epoch)

    return factor


def split_groups(optimizer: torch.optim.Optimizer, model: PreTrainedModel, training: TrainingRecipe) -> None:
    """Split a new optimiser's parameter groups by learning rate, those of the head first. Where all rates are equal,
    the groups stay as they are.

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
        optimizer.param_groups[:] = sorted(groups, key=lambda group: group["lr"] != head)  # Trainer logs the first


def _factors(model: PreTrainedModel, training: TrainingRecipe) -> dict[nn.Parameter, float]:
    """Map each of the encoder's parameters to the factor on its learning rate."""
    named = dict(encoder_of(model).named_parameters())
    scales = dict.fromkeys(named, 1.0)
    if training.layer_lr_decay is not None:
        scales = _layer_scales(model.config.encoder, training.layer_lr_decay)
        # in some of timm's feature models, "stages.0.downsample" is called "stages_0.downsample"
        scales = {name: scales.get(name.replace(".", "_")) for name in named}
        if None in scales.values():
            what = f"timm does not say to which layers of {model.config.encoder} its parameters belong"
            raise RecipeError(
                "training.layer_lr_decay", what, "leave it out; encoder_lr_multiplier is for any encoder"
            )
    return {parameter: training.encoder_lr_multiplier * scales[name] for name, parameter in named.items()}


def _layer_scales(encoder: str, decay: float) -> dict[str, float]:
    """Map the name of each parameter, with "_" for each dot, to `decay` ** n. Here n is 1 in the encoder's last layer,
    2 in the layer before it, and so on.

    timm's feature models lack its table of layers, so the table is that of the whole classification model. The last
    layer there is the classifier, which the head replaces here.
    """
    with torch.device("meta"), meta_device_safe_creation_ops():
        whole = timm.create_model(encoder)
    groups = param_groups_layer_decay(whole, layer_decay=decay)
    scales = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    return {name.replace(".", "_"): scales[parameter] for name, parameter in whole.named_parameters()}
