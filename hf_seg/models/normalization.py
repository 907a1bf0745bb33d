"""What `data.normalize: "auto"` stands for: how pixels were normalised for the weights that a recipe starts from."""

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
    """The recipes, in training order, with a name in the place of each `data.normalize: "auto"`.

    Raises:
        RecipeError: when the source of the weights does not say, or has a mean and deviation without a name.
    """
    resolved: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.data.normalize == "auto":
            first = resolved.get(recipe.encoder_recipe)  # whose run may not be trained yet
            normalize = first.data.normalize if first else find_normalization(recipe.model)
            recipe = replace(recipe, data=replace(recipe.data, normalize=normalize))
        resolved[recipe.name] = recipe
    return list(resolved.values())


def find_normalization(model: ModelRecipe) -> str:
    """`"none"` or the key of `NORMALIZATIONS` that the weights which a recipe starts from were trained with.

    timm's configuration says it (an encoder of timm, with imagenet), or the image processor beside the weights. MiT
    weights for SegFormer may be without one: all of them were trained with ImageNet's mean and deviation.

    Raises:
        RecipeError: as [`resolve_normalize`], and when there are no such weights.
    """
    try:
        is_timm = model.arch in ON_TIMM and model.init == "imagenet"
        found = _of_timm(model) if is_timm else _of_image_processor(model)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecipeError) as error:
        if (model.arch, model.init) == ("segformer", "imagenet") and isinstance(error, OSError):
            return "imagenet"
        locate_encoder_weights(model)  # what is wrong with the model or its weights comes first
        what = f"{source_of(model)} does not say how pixels were normalised ({one_line(error)})"
        raise RecipeError(KEY, what, REMEDY) from error
    if found is None:
        return "none"
    mean, std = map(list, found)
    for name, values in NORMALIZATIONS.items():
        if (mean, std) == values:
            return name
    what = f"{source_of(model)} has mean {mean} and deviation {std}, for which there is no name"
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
