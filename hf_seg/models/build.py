"""Build a recipe's model and image processor, and record where all initial weights come from."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import HFValidationError
from pydantic import TypeAdapter
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)
from transformers.image_utils import PILImageResampling
from transformers.initialization import meta_device_safe_creation_ops

from hf_seg.problem import RecipeError, one_line
from hf_seg.recipe.keys import NORMALIZATIONS
from hf_seg.recipe.reading import problem_of
from hf_seg.recipe.rules import REFUSED_CONFIG, check_config, config_fields

from . import weights
from .configuration_fcn import FCNConfig
from .configuration_smp import SmpConfig
from .fast_segformer import make_fast
from .modeling_fcn import FCNForSemanticSegmentation
from .modeling_smp import SmpForSemanticSegmentation
from .weight_files import sha256
from .weights import encoder_of

if TYPE_CHECKING:
    from hf_seg.data.geometry import Size
    from hf_seg.data.spec import DatasetSpec
    from hf_seg.recipe.keys import ModelRecipe

MODELS: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "fcn": (FCNConfig, FCNForSemanticSegmentation),
    "segformer": (SegformerConfig, SegformerForSemanticSegmentation),
    "smp": (SmpConfig, SmpForSemanticSegmentation),
}
RANDOM = "random initialisation"
COUNTED_IMAGES = 64  # the default batch size of recipes


def build_model(model: ModelRecipe, spec: DatasetSpec, size: Size = (64, 64)) -> tuple[PreTrainedModel, dict]:
    """Build the model of a recipe with its initial weights. Set the seed before: random weights are drawn here.

    Args:
        size (`tuple[int, int]`): height and width of the model's input in pixels.

    Returns:
        `tuple[PreTrainedModel, dict]`: the model, on the CPU in fp32; and the provenance of its weights, ready for
        JSON: `init`, `frozen`, `encoder` (`source` as in the recipe, `from_hub`, `sha256` of the file or None,
        `tensors_loaded`, `tensors_fresh`, and `license` if timm gives one) and `head` (`source`, `tensors_fresh`;
        with init "model" what [`weights.load_model`] returns).

    Raises:
        RecipeError: as [`locate_encoder_weights`], and when the file does not contain weights of this encoder.
    """
    config, model_class = _build_config(model, size, spec)
    path = None if model.init == "scratch" else locate_encoder_weights(model, size)
    built = model_class(config)
    if model.arch == "auto":
        _reset_batch_norms(built)
    if model.fast_head:
        make_fast(built)
    # Trainer concludes from the **kwargs of SegFormer's forward that the model scales the loss itself. It does not.
    built.accepts_loss_kwargs = False

    encoder = encoder_of(built)
    count = len(encoder.state_dict())
    head = {"source": "fresh", "tensors_fresh": len(built.state_dict()) - count}
    if path is None:
        origin = {"source": RANDOM, "from_hub": False, "sha256": None, "tensors_loaded": 0, "tensors_fresh": count}
    else:
        if model.init == "model":
            head = weights.load_model(model, path, built)
        else:
            encoder.load_state_dict(weights.read(model, path, built))
        source = weights.source_of(model)
        origin = {
            "source": source,
            "from_hub": not Path(source).expanduser().exists(),
            "sha256": sha256(path),
            "tensors_loaded": count,
            "tensors_fresh": 0,
        }
        if license := weights.license_of(source):
            origin["license"] = license
    if model.freeze_encoder:
        _freeze(encoder)
    return built, {"init": model.init, "frozen": model.freeze_encoder, "encoder": origin, "head": head}


def build_image_processor(
    *, size: Size, normalize: str, resize: str = "stretch", value_range: Sequence[float] | None = None
) -> SegformerImageProcessor:
    """Build the image processor of any model. It resizes (bilinear, antialiased) as far as transformers' class can.

    [`hf_seg.data.geometry.Framing`] reads from its settings what is left to do: for `resize` "letterbox" the padding,
    for "crop" the windows. With `normalize` "none" RGB stays in [0, 1]; a key of `NORMALIZATIONS` gives the mean and
    standard deviation to use. `value_range` is saved for hf_seg's own inference; the image processor ignores it.
    `size` is the height and width of the model's input in pixels.
    """
    height, width = size
    sides = {"height": height, "width": width}
    how = {
        "stretch": {"do_resize": True, "size": sides},
        "letterbox": {
            "do_resize": True,
            "size": {"max_height": height, "max_width": width},
            "do_pad": True,
            "pad_size": sides,
        },
        "crop": {"do_resize": False, "do_center_crop": False, "crop_size": sides},
    }[resize]
    # an image processor that does not normalise never uses its mean and deviation
    mean, std = NORMALIZATIONS["imagenet" if normalize == "none" else normalize]
    own = {} if value_range is None else {"value_range": value_range}
    return SegformerImageProcessor(
        **how,
        **own,
        resample=PILImageResampling.BILINEAR,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=normalize != "none",
        image_mean=mean,
        image_std=std,
        do_reduce_labels=False,
    )


def measure_forward(model: PreTrainedModel, size: Size) -> dict[str, int | list[int]]:
    """Count the operations of the forward pass per image, on a copy of the model that takes no memory.

    Returns:
        `dict`: `multiply_adds`, the number per image in convolutions and matrix products (torch counts two operations
        for each), averaged over a batch of `COUNTED_IMAGES`, since products of weights are computed once per batch;
        and `logits_size`, the height and width of the logits.
    """
    with torch.device("meta"), meta_device_safe_creation_ops(), torch.no_grad():
        twin = type(model)(copy.deepcopy(model.config)).eval()
        for copied, module in zip(twin.modules(), model.modules(), strict=True):
            copied.__class__ = type(module)  # `make_fast` may have changed it
        with FlopCounterMode(display=False) as counter:
            logits = twin(torch.empty(COUNTED_IMAGES, 3, *size)).logits
    multiply_adds = counter.get_total_flops() // (2 * COUNTED_IMAGES)
    return {"multiply_adds": multiply_adds, "logits_size": list(logits.shape[-2:])}


def check_model(model: ModelRecipe, encoder_from: ModelRecipe | None = None, size: Size = (64, 64)) -> None:
    """Check all of a model that can be checked before training and downloads. Draws no random numbers.

    Args:
        encoder_from (`ModelRecipe`, *optional*): the recipe whose run will give the encoder, for a run that may not be
            trained yet. A checkpoint that exists is checked by [`locate_encoder_weights`] instead.

    Raises:
        RecipeError: when the model cannot be built, or the other recipe's encoder is built differently.
    """
    config, _ = _build_config(model, size)
    if encoder_from is not None:
        weights.compare(model, config, _build_config(encoder_from, size)[0].to_dict())


def locate_encoder_weights(model: ModelRecipe, size: Size = (64, 64)) -> Path | None:
    """Check as [`check_model`] does, and return the file with the encoder's initial weights; None for "scratch".

    A file on the Hub is downloaded once. A checkpoint's config.json is compared with the recipe.

    Raises:
        RecipeError: when something is wrong with the recipe, or the weights cannot be found, downloaded or used.
    """
    config, _ = _build_config(model, size)
    return None if model.init == "scratch" else weights.locate(model, config)


def _build_config(
    model: ModelRecipe, size: Size, spec: DatasetSpec | None = None
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """Return the checked configuration and its model's class; without a `spec`, `id2label` stays as it was."""
    if model.arch == "auto":
        config_class, given = _read_config(model.path)
        model_class = MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[config_class]
        if not model.fast_head and config_class is not SegformerConfig:
            what = f"is for SegFormer only, and {model.path} is a model of type {config_class.model_type}"
            raise RecipeError("model.fast_head", what, "leave it out")
        known = [{field.name for field in dataclasses.fields(each)} for each in (config_class, PreTrainedConfig)]
        # some configuration classes store `out_indices` as `_out_indices`
        names = sorted({key.removeprefix("_") for key in known[0] - known[1]} - REFUSED_CONFIG.keys())
        fields = dict.fromkeys(names, (TypeAdapter(Any), None))
    else:
        (config_class, model_class), given = MODELS[model.arch], {}
        fields = config_fields(model.arch, model.path if model.arch == "smp" else None)
    model_type = {"auto": config_class.model_type, "smp": model.path}.get(model.arch, model.arch)
    if problems := [problem_of(*found) for found in check_config(model_type, model.config, fields)]:
        raise RecipeError(problems=problems)
    arguments = given | model.config
    if model.arch == "smp":
        arguments = {"architecture": model.path, "arguments": model.config}
    if model.encoder is not None:
        arguments["encoder"] = model.encoder
    if spec is not None:
        arguments |= {"id2label": spec.id2label, "label2id": spec.label2id}
        arguments["semantic_loss_ignore_index"] = spec.ignore_index
    try:
        config = config_class.from_dict(arguments)
        # A forward pass without memory or arithmetic finds problems that no single key shows: heads that do not divide
        # a width, an unknown activation, an encoder that timm cannot dilate, positions for images of another size.
        with torch.device("meta"), meta_device_safe_creation_ops():
            model_class(config).eval()(torch.empty(1, 3, *size))
    except Exception as error:  # whatever type the libraries raise, it is about these values
        said = one_line(error)
        where = "model.encoder" if said.startswith("encoder ") else "model.config"
        on = f" on {config.encoder}" if model.arch == "smp" else ""
        raise RecipeError(where, f"{model.path or model.arch}{on} cannot be built: {said}") from error
    if spec is not None:
        config.palette = [list(colour) for colour in spec.palette]  # for programs that draw the masks
    return config, model_class


def _read_config(path: str) -> tuple[type[PreTrainedConfig], dict]:
    """Return the class and the keys of the configuration that `model.path` names. Code that comes with it is not
    run."""
    try:
        if path in CONFIG_MAPPING:
            config_class, given = CONFIG_MAPPING[path], {}
        else:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            config_class, given = type(config), config.to_dict()
    except (OSError, ValueError, KeyError, TypeError, HFValidationError) as error:
        what = f"{path} does not give a configuration ({one_line(error)})"
        remedy = "name a folder, a config.json, a Hub id (offline, one that is in the cache) or a model type of "
        raise RecipeError("model.path", what, f"{remedy}transformers") from error
    if config_class not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        types = sorted(known.model_type for known in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING)
        what = f"{path} is a model of type {config_class.model_type}, and transformers has no semantic segmentation"
        raise RecipeError("model.path", f"{what} model for it", f"choose one of {', '.join(types)}")
    if hasattr(config_class, "use_auxiliary_head"):
        given["use_auxiliary_head"] = False  # only the model's own loss, which is not used, would train it
    return config_class, given


def _reset_batch_norms(model: PreTrainedModel) -> None:
    """Start batch norms as PyTorch does: scale 1, shift 0."""
    # transformers 5.24 draws MobileViT's scales from N(0, 0.02). From scratch, each layer would then shrink its maps
    # fiftyfold, and the logits would hardly depend on the image.
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()


def _freeze(encoder: nn.Module) -> None:
    """Switch off gradients and keep the encoder in evaluation mode, which also freezes batch-norm statistics and
    switches off stochastic depth."""
    encoder.requires_grad_(False)
    encoder.eval()
    # `model.train()` calls its children's `train`. A bound method is copied together with its module by `deepcopy`.
    encoder.train = MethodType(_stay_in_eval, encoder)


def _stay_in_eval(encoder: nn.Module, mode: bool = True) -> nn.Module:
    return encoder
