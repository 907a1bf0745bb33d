"""Replace `data.normalize: "auto"` by the normalisation that a recipe's initial weights were trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import timm
from transformers import AutoImageProcessor

from hf_seg.problem import RecipeError, one_line
from hf_seg.recipe.keys import NORMALIZATIONS, ON_TIMM

from .build import locate_encoder_weights
from .weights import source_of

if TYPE_CHECKING:
    from hf_seg.recipe import Recipe
    from hf_seg.recipe.keys import ModelRecipe

KEY = "data.normalize"
REMEDY = f"set it to {', '.join(NORMALIZATIONS)} or none"


def resolve_normalize(recipes: list[Recipe]) -> list[Recipe]:
    """Return the recipes, which are in training order, with each `data.normalize: "auto"` replaced by a name.

    Raises:
        RecipeError: when the source of the weights does not give the normalisation, or `NORMALIZATIONS` has no name
            for its mean and standard deviation.
    """
    resolved: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.data.normalize == "auto":
            first = resolved.get(recipe.encoder_recipe)  # its run may not be trained yet
            normalize = first.data.normalize if first else find_normalization(recipe.model)
            recipe = replace(recipe, data=replace(recipe.data, normalize=normalize))
        resolved[recipe.name] = recipe
    return list(resolved.values())


def find_normalization(model: ModelRecipe) -> str:
    """Return the normalisation that the initial weights were trained with: `"none"` or a key of `NORMALIZATIONS`.

    It is in timm's configuration (a timm encoder with init "imagenet"), or in the image processor saved beside the
    weights. MiT weights for SegFormer may have none: all were trained with ImageNet's mean and standard deviation.

    Raises:
        RecipeError: as [`resolve_normalize`], and when there are no such weights.
    """
    try:
        is_timm = model.arch in ON_TIMM and model.init == "imagenet"
        found = _of_timm(model) if is_timm else _of_image_processor(model)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecipeError) as error:
        if (model.arch, model.init) == ("segformer", "imagenet") and isinstance(error, OSError):
            return "imagenet"
        locate_encoder_weights(model)  # a problem of the model or its weights is reported first
        what = f"{source_of(model)} does not say how pixels were normalised ({one_line(error)})"
        raise RecipeError(KEY, what, REMEDY) from error
    if found is None:
        return "none"
    mean, std = map(list, found)
    for name, values in NORMALIZATIONS.items():
        if (mean, std) == values:
            return name
    what = f"{source_of(model)} has mean {mean} and standard deviation {std}, which hf_seg does not support"
    raise RecipeError(KEY, what, REMEDY)


def _of_timm(model: ModelRecipe) -> tuple[Sequence[float], Sequence[float]]:
    weights, encoder = model.encoder_weights or "", model.encoder or "resnet50"
    tag = weights.removeprefix("timm/") if weights.startswith("timm/") else encoder  # timm/resnet50.tv2_in1k
    known = timm.get_pretrained_cfg(tag) or timm.get_pretrained_cfg(encoder)
    if known is None:
        raise ValueError(f"timm has no configuration of {encoder}")
    return known.mean, known.std


def _of_image_processor(model: ModelRecipe) -> tuple[Sequence[float], Sequence[float]] | None:
    source = source_of(model)
    place = Path(source).expanduser()
    place = str(place.parent if place.is_file() else place) if place.exists() else source
    processor = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
    return (processor.image_mean, processor.image_std) if processor.do_normalize else None
