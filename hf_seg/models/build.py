"""Builds a recipe's model and image processor, and accounts for where every initial weight comes from."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)
from transformers.image_utils import PILImageResampling
from transformers.initialization import meta_device_safe_creation_ops

from hf_seg.data.normalization import NORMALIZATIONS

from . import auto, weights
from .configuration_fcn import FCNConfig
from .modeling_fcn import FCNForSemanticSegmentation
from .weights import WeightsError, encoder_of

if TYPE_CHECKING:
    from hf_seg.data.spec import DatasetSpec
    from hf_seg.recipe.keys import ModelRecipe

__all__ = [
    "WeightsError",
    "build_image_processor",
    "build_model",
    "check_model",
    "describe_provenance",
    "encoder_of",
    "locate_encoder_weights",
    "measure_forward",
]

MODELS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "fcn": (FCNConfig, FCNForSemanticSegmentation),
    "segformer": (SegformerConfig, SegformerForSemanticSegmentation),
}
# Keys of the configuration classes that a recipe's model.config may not set, and why.
REFUSED_KEYS = {
    "encoder": "say it as model.encoder",
    "num_channels": "images are RGB",
    "num_labels": "the data set says it",
    "id2label": "the data set says it",
    "label2id": "the data set says it",
    "semantic_loss_ignore_index": "the data set says it",
    "use_auxiliary_head": "there is one loss for all models, of the one head",
}
RANDOM = "random initialisation"


def build_model(model: ModelRecipe, spec: DatasetSpec, image_size: int = 64) -> tuple[PreTrainedModel, dict]:
    """Build the model of a recipe with its initial weights. Seed before calling: fresh weights are drawn in here.

    Args:
        model (`ModelRecipe`): architecture, initial weights, freezing.
        spec (`DatasetSpec`): the classes, and the label that the loss leaves out.
        image_size (`int`, *optional*, defaults to 64): height and width of its images in pixels.

    Returns:
        `tuple[PreTrainedModel, dict]`: the model, on the CPU in fp32; and the provenance of its weights, ready for
        JSON: `init`, `frozen`, `encoder` (`source` as in the recipe, `from_hub`, `sha256` of the file or None,
        `tensors_loaded`, `tensors_fresh`) and `head` (`source`, `tensors_fresh`).

    Raises:
        WeightsError: as [`locate_encoder_weights`], and when the file does not hold the weights of this encoder.
    """
    config, model_class = _build_config(model, image_size, spec)
    path = None if model.init == "scratch" else locate_encoder_weights(model, image_size)
    built = model_class(config)
    if model.arch == "auto":
        auto.reset_batch_norms(built)
    # SegFormer's forward takes **kwargs, from which Trainer concludes that it scales the loss itself. It does not.
    built.accepts_loss_kwargs = False

    encoder = encoder_of(built)
    count = len(encoder.state_dict())
    if path is None:
        origin = {"source": RANDOM, "from_hub": False, "sha256": None, "tensors_loaded": 0, "tensors_fresh": count}
    else:
        encoder.load_state_dict(weights.read(model, path, config, built))
        source = weights.source_of(model)
        origin = {
            "source": source,
            "from_hub": not Path(source).expanduser().exists(),
            "sha256": weights.sha256(path),
            "tensors_loaded": count,
            "tensors_fresh": 0,
        }
    if model.freeze_encoder:
        _freeze(encoder)
    head = {"source": "fresh", "tensors_fresh": len(built.state_dict()) - count}
    return built, {"init": model.init, "frozen": model.freeze_encoder, "encoder": origin, "head": head}


def describe_provenance(provenance: dict) -> str:
    """Say in one line where a model's initial weights came from.

    Args:
        provenance (`dict`): as [`build_model`] returns it.

    Returns:
        `str`: such as "encoder: 318 tensors from timm/resnet50.tv2_in1k (sha256 0123456789ab), frozen; head: 8 fresh
        tensors".
    """
    encoder = provenance["encoder"]
    if encoder["sha256"] is None:
        text = f"encoder: {encoder['tensors_fresh']} fresh tensors ({encoder['source']})"
    else:
        text = (
            f"encoder: {encoder['tensors_loaded']} tensors from {encoder['source']} (sha256 {encoder['sha256'][:12]})"
        )
    frozen = ", frozen" if provenance["frozen"] else ""
    return f"{text}{frozen}; head: {provenance['head']['tensors_fresh']} fresh tensors"


def build_image_processor(*, image_size: int, normalize: str) -> SegformerImageProcessor:
    """Build the image processor that goes with both models.

    Args:
        image_size (`int`): height and width in pixels that a photograph is resized to (bilinear, antialiased).
        normalize (`str`): "none" leaves RGB in [0, 1]; a key of `NORMALIZATIONS` subtracts its mean and divides by
            its standard deviation.

    Returns:
        `SegformerImageProcessor`: the torchvision-backed one.

    Raises:
        ValueError: when `normalize` is neither.
    """
    if normalize not in ("none", *NORMALIZATIONS):
        raise ValueError(f"normalize must be one of none, {', '.join(NORMALIZATIONS)}, not {normalize!r}.")
    # what an image processor that does not normalise holds is never used
    mean, std = NORMALIZATIONS.get(normalize, NORMALIZATIONS["imagenet"])
    return SegformerImageProcessor(
        do_resize=True,
        size={"height": image_size, "width": image_size},
        resample=PILImageResampling.BILINEAR,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=normalize != "none",
        image_mean=mean,
        image_std=std,
        do_reduce_labels=False,
    )


def measure_forward(model: PreTrainedModel, image_size: int) -> dict[str, int | list[int]]:
    """Count what one forward pass of one image costs, on a twin without memory: `model` itself is not touched.

    Args:
        model (`PreTrainedModel`): as [`build_model`] returns it; only its class and configuration are used.
        image_size (`int`): height and width of the image in pixels.

    Returns:
        `dict`: `multiply_adds` of convolutions and matrix products (torch counts two operations for each), and
        `logits_size`, the height and width of the logits.
    """
    with torch.device("meta"), meta_device_safe_creation_ops(), torch.no_grad():
        twin = type(model)(copy.deepcopy(model.config)).eval()
        with FlopCounterMode(display=False) as counter:
            logits = twin(torch.empty(1, 3, image_size, image_size)).logits
    return {"multiply_adds": counter.get_total_flops() // 2, "logits_size": list(logits.shape[-2:])}


def check_model(model: ModelRecipe, encoder_from: ModelRecipe | None = None, image_size: int = 64) -> None:
    """Check what can be known of a model before anything is trained or downloaded. Draws no random numbers.

    Args:
        model (`ModelRecipe`): its `encoder` and `config` are checked.
        encoder_from (`ModelRecipe`, *optional*): the recipe whose run will give the encoder, when that is still to be
            trained; without it, the checkpoint is checked by [`locate_encoder_weights`].
        image_size (`int`, *optional*, defaults to 64): height and width of its images in pixels.

    Raises:
        WeightsError: when the model cannot be built, or the other recipe's encoder is built otherwise.
    """
    config, _ = _build_config(model, image_size)
    if encoder_from is not None:
        weights.compare(model, config, _build_config(encoder_from, image_size)[0].to_dict())


def locate_encoder_weights(model: ModelRecipe, image_size: int = 64) -> Path | None:
    """Find the file with the encoder's initial weights, downloading it once if it is on the Hub.

    To be called for every recipe before the first one trains: it also does [`check_model`], and compares the recipe
    with a checkpoint's config.json.

    Args:
        model (`ModelRecipe`): its `encoder_weights` is a file, a folder or a Hub id; None means the default.
        image_size (`int`, *optional*, defaults to 64): height and width of its images in pixels.

    Returns:
        `Path` of a .safetensors file or pytorch_model.bin; None when the recipe starts from scratch.

    Raises:
        WeightsError: naming what is wrong with the recipe or why the weights cannot be had, and the remedy.
    """
    config, _ = _build_config(model, image_size)
    return None if model.init == "scratch" else weights.locate(model, config)


def _build_config(
    model: ModelRecipe, image_size: int, spec: DatasetSpec | None = None
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """The checked configuration and its model's class; without a `spec` it has the classes that it had before."""
    given: dict = {}
    if model.arch == "auto":
        config_class, model_class, given = auto.read_config(model.path)
    else:
        config_class, model_class = MODELS[model.arch]
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(config_class)}
    # a backbone's `_out_indices` is set as `out_indices`
    known = sorted(key.removeprefix("_") for key in own - inherited - REFUSED_KEYS.keys())
    for key in model.config:
        if key in REFUSED_KEYS:
            raise WeightsError(f"model.config.{key} cannot be set here: {REFUSED_KEYS[key]}.")
        # The configuration classes take any key, and a misspelt one would change nothing.
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}."
            raise WeightsError(f"model.config.{key} is not a key of {config_class.__name__}: {hint}")
    if model.arch == "segformer":
        _check_stages(model.config)
    arguments = given | model.config
    if model.encoder is not None:
        arguments["encoder"] = model.encoder
    if spec is not None:
        arguments["id2label"] = spec.id2label
        arguments["label2id"] = spec.label2id
        arguments["semantic_loss_ignore_index"] = spec.ignore_index
    try:
        config = config_class.from_dict(arguments)
        # A forward pass without memory or arithmetic finds what no key says alone: heads that do not divide a width,
        # an activation that does not exist, an encoder that timm cannot dilate, positions for images of another size.
        with torch.device("meta"), meta_device_safe_creation_ops():
            model_class(config).eval()(torch.empty(1, 3, image_size, image_size))
    except Exception as error:  # whatever the libraries raise, it is about these few values
        said = " ".join(str(error).split()) or type(error).__name__
        where = "model.encoder" if said.startswith("encoder ") else "model.config"
        raise WeightsError(f"{where}: no {model.path or model.arch} can be built: {said}") from error
    if spec is not None:
        config.palette = [list(colour) for colour in spec.palette]  # for whoever draws the masks
    return config, model_class


def _check_stages(config: dict) -> None:
    """One value a stage, in every list: surplus ones would be ignored, missing ones end in an IndexError."""
    stages = config.get("num_encoder_blocks", SegformerConfig.num_encoder_blocks)
    defaults = SegformerConfig()
    for key in weights.ENCODER_KEYS["segformer"][1:]:
        value = config.get(key, getattr(defaults, key))
        if isinstance(value, list | tuple) and len(value) != stages:
            raise WeightsError(
                f"model.config.{key} needs one value for each of the {stages} stages, not {len(value)}: {list(value)}."
            )


def _freeze(encoder: nn.Module) -> None:
    """No gradients, and evaluation mode for good: batch-norm statistics and stochastic depth count as training too."""
    encoder.requires_grad_(False)
    encoder.eval()
    # `model.train()` calls this on its children. A bound method follows its module through `copy.deepcopy`.
    encoder.train = MethodType(_stay_in_eval, encoder)


def _stay_in_eval(encoder: nn.Module, mode: bool = True) -> nn.Module:
    return encoder
