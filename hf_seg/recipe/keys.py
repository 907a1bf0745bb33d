"""The keys of a recipe. The meaning, type, range and default of each key are defined here, and only here.

pydantic decides what is valid; the JSON Schema and docs/recipes.md are made from the same fields.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.json_schema import SkipJsonSchema

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
# not `str`: pydantic counts its length in UTF-8, and the name of a folder may not be valid UTF-8
Text = Annotated[InstanceOf[str], Field(min_length=1)]
Auto = bool | Literal["auto"]
Side = Annotated[int, Field(ge=32, le=2048, multiple_of=32)]
Loss = Literal["cross_entropy", "dice", "lovasz", "focal"]
ON_TIMM = ("fcn", "smp")  # architectures whose encoder is a model of timm
# values of data.normalize → mean and standard deviation of each RGB channel in [0, 1]; the names are timm's
NORMALIZATIONS = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "inception": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}


@dataclass(kw_only=True, config=STRICT)
class ModelRecipe:
    """The `model` section: the architecture and where its first weights come from."""

    arch: Literal["fcn", "segformer", "smp", "auto"]
    """The architecture: FCN (a CNN), SegFormer (a transformer), a U-Net or another model of
    segmentation_models_pytorch (smp), or any other of transformers (auto). For smp and auto, path names it."""
    path: Text | None = None
    """segformer: its size, b0 to b5 (or nvidia/mit-b0 to nvidia/mit-b5), for config and for the weights of init
    imagenet; null: b0. smp: its name of the architecture, such as unet, unetplusplus, deeplabv3plus, fpn, upernet or
    dpt. auto: a Hub id, a folder or a config.json of a semantic segmentation model, or a model type of transformers,
    such as mobilevit, in its default sizes. path gives the architecture; init decides whether it also gives the
    weights."""
    encoder: Text | None = None
    """fcn: name of any timm CNN that can return feature maps. smp: name of any timm model that smp's architecture
    accepts (dpt: a ViT, which must be named), or of one of smp's own encoders. null: resnet50. SegFormer's size is
    set by path instead."""
    init: Literal["scratch", "imagenet", "checkpoint", "model"] = "scratch"
    """Where the initial weights come from. scratch: all are random. imagenet: an ImageNet encoder. checkpoint: the
    encoder of another run. model: encoder and head of another run, with classes matched by name. Other weights of the
    head are random."""
    encoder_weights: str | None = None
    """With init imagenet: a Hub id, or a local file or folder (null: for SegFormer nvidia/mit-b0, or the size in path;
    for fcn and smp timm/resnet50.tv2_in1k with resnet50, timm's default weights with another encoder). With
    checkpoint and model: a run's folder, a Hub id, or the name of another recipe, which is then trained first (null,
    auto only: path). With scratch: null."""
    freeze_encoder: bool = False
    """Train the head only. The encoder's batch-norm statistics are frozen with its weights."""
    fast_head: bool = True
    """SegFormer only: compute the same as transformers' SegFormer with fewer operations. The results differ by
    rounding, and on a CPU by the random numbers of dropout; the saved format is the same. false: transformers' own
    forward pass."""
    config: dict[str, Any] = Field({})
    """Keys of the model's configuration class (smp: arguments of smp's class) that differ from its defaults, e.g.
    {"strides": [2, 2, 2, 2]}."""


@dataclass(kw_only=True, config=STRICT)
class DataRecipe:
    """The `data` section: the data set and how its pairs of image and mask are prepared."""

    name: Literal["oxford_pet", "cityscapes", "synthetic_pet", "synthetic_cityscapes", "folder", "hub"]
    """The data set; folder: your own pictures and masks; hub: a data set with an image and a mask column, on the
    Hugging Face Hub or in Parquet files."""
    root: Text | None = None
    """Folder of the data. null: a folder under $HF_SEG_DATA, or else a download, if the data set has one. Synthetic
    data is generated and has no folder; with folder, root is required. With hub: the folder of classes.json and
    split.json (null: path, if that is a folder)."""
    path: Text | None = None
    """hub only: a Hub id (org/name), a folder of Parquet files, or a folder written by save_to_disk."""
    revision: Text | None = None
    """hub only: a commit, tag or branch on the Hub. null: main."""
    config_name: Text | None = None
    """hub only: the configuration of the data set. null: the only one, or the default."""
    image_column: Text | None = None
    """hub only: the column of images. null: found by name and type."""
    mask_column: Text | None = None
    """hub only: the column of masks. null: found by name and type."""
    layout: Text | None = None
    """folder only: the layout in which the folder is read, if it matches several (names as in `hf-seg init --layout`);
    or patterns of the images' and masks' paths, such as "rgb/*.jpg + truth/*_gt.png". null: the only layout."""
    value_range: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    """folder and hub only, for images of one channel with more than 8 bits: the values that become black and white, as
    `hf-seg init` measures them. Images of 8 bits stay as they are. null: deeper images are refused."""
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] = 64
    """Height and width, in pixels, of the model's input: one number for both, or [height, width]."""
    resize: Literal["stretch", "letterbox", "crop"] = "stretch"
    """How a picture is brought to image_size. stretch: resized, which changes its shape. letterbox: resized with its
    shape kept, and padded with black, which neither loss nor metric counts. crop: training sees random crops, at a
    random scale from 0.5 to 2; evaluation and prediction see the picture at its own scale, through overlapping
    windows."""
    normalize: Literal["auto", "none", "imagenet", "inception"] = "auto"
    """Normalisation after scaling to [0, 1]. none: nothing more. imagenet: ImageNet's mean and standard deviation.
    inception: 0.5 for both (to [-1, 1]), as for Inception and timm's tf_ models. auto: as the initial weights
    were trained, according to their image processor, to timm, or to the recipe that gives the encoder; from scratch:
    none. The run records the name that auto stands for."""
    augment: Literal["none", "flip", "standard", "strong"] = "none"
    """Augmentation of training pairs. flip: mirrored. standard: mirrored, scaled and cropped, with colour changes.
    strong: as standard, but with smaller crops, and rotated."""
    max_train_samples: int | None = Field(None, ge=1, lt=2**63)
    """Only the first n pairs of the training split."""
    max_validation_samples: int | None = Field(None, ge=1, lt=2**63)
    """Only the first n pairs of the validation split."""
    max_test_samples: int | None = Field(None, ge=1, lt=2**63)
    """Only the first n pairs of the test split."""
    cache: bool | str = "auto"
    """Whether prepared pairs are kept on disk, so that no picture is decoded twice. true: in $HF_HOME/hf_seg/prepared.
    A string: in the folder of that name. auto: as true if they take at most half of the free disk space; otherwise
    each epoch decodes the pictures again (with a GPU, in worker processes)."""
    on_bad_pair: Literal["stop", "drop"] = "stop"
    """folder and hub only. What happens if a pair cannot be used. stop: the run stops before it trains. drop: the pair
    is left out and listed in results.json, and the scores are then not comparable."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of `image_size`, in pixels."""
        height, width = self.image_size if isinstance(self.image_size, list) else (self.image_size,) * 2
        return height, width


@dataclass(kw_only=True, config=STRICT)
class TrainingRecipe:
    """The `training` section: the study's protocol by default, and any other argument of transformers' Trainer."""

    num_train_epochs: int = Field(30, ge=1, le=100_000)
    """Passes over the training split."""
    global_train_batch_size: int = Field(64, ge=1, le=65_536)
    """Images per optimiser step, over all ranks and accumulation steps together."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=65_536)
    """Number of parts into which each rank's share of a batch is split, to save memory. Batch norm sees each part
    separately."""
    loss: Loss | Annotated[dict[Loss, Annotated[float, Field(gt=0, le=1000)]], Field(min_length=1)] = "cross_entropy"
    """What training minimises, or a sum of losses with their weights, e.g. {"cross_entropy": 1, "dice": 0.5}. The loss
    of validation and test is always cross_entropy."""
    class_weights: Literal["balanced"] | list[Annotated[float, Field(ge=0, le=1000)]] | None = None
    """How much a pixel of each class counts in cross_entropy and focal. balanced: the average number of pixels per
    class in the training split, divided by the number of this class, at most 10. A list: in the order of the ids.
    null: 1."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """The share of each pixel's target that cross_entropy spreads evenly over all classes."""
    learning_rate: float = Field(1e-3, gt=0, le=10)
    """Learning rate of the first epoch."""
    weight_decay: float = Field(0.01, ge=0, le=10)
    """AdamW's weight decay."""
    amsgrad: bool = True
    """AdamW's AMSGrad variant."""
    max_grad_norm: float = Field(1.0, ge=0, le=1_000_000)
    """Gradients are clipped to this norm. 0: no clipping."""
    lr_scheduler_type: str = "exponential"
    """exponential (times lr_decay_per_epoch after each epoch) or one of transformers' schedules, e.g. cosine."""
    lr_decay_per_epoch: float = Field(0.98, gt=0, le=1)
    """Factor on the learning rate after each epoch of the exponential schedule."""
    encoder_lr_multiplier: float = Field(1.0, gt=0, le=1000)
    """Factor on the learning rate of the encoder. learning_rate is that of the head."""
    layer_lr_decay: float | None = Field(None, gt=0, le=1)
    """FCN only: a further factor on the learning rate of the encoder's layers, applied once for each layer between a
    layer and the head, so that the first layers learn slowest. null: 1."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Average the weights: after each step this share of the average is kept, less in the first steps. Validation,
    test and saved models use the average. null: no average."""
    eval_every_epochs: int = Field(2, ge=1, le=100_000)
    """Epochs between validations. Each validation saves a checkpoint; the best one by validation mIoU is kept."""
    early_stopping_patience: int | None = Field(None, ge=1, le=100_000)
    """End the training after this many validations in a row without a new best mIoU. null: train all epochs."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of initial weights, shuffling and augmentation."""
    bf16: Auto = "auto"
    """bfloat16 mixed precision. auto: where the device computes it in hardware."""
    fp16: Auto = "auto"
    """float16 mixed precision with loss scaling, on GPUs only. auto: where bf16 is "auto" and the GPU lacks it."""
    channels_last: Auto = "auto"
    """Memory layout of images. auto: on CPUs and CUDA GPUs."""
    sync_batch_norm: Auto = "auto"
    """Batch norm's statistics over the images of all ranks (GPUs only). auto: where a rank has fewer than 16 images at
    a time."""
    compile: Auto = "auto"
    """Compile the model with torch.compile, in mode reduce-overhead unless torch_compile_mode names another. auto:
    off, because it has not been measured on a GPU yet."""
    cuda_graphs: Auto = "auto"
    """Launch all kernels of a step's forward pass at once, and all of its backward pass, as CUDA graphs (on one GPU
    only). auto: off, because it has not been measured yet."""
    report_to: str | list[str] = "auto"
    """Where curves are reported to: auto (TensorBoard when installed), none, all, or names such as wandb."""
    push_to_hub: bool = False
    """Upload the model, its processor and its card to the Hugging Face Hub."""
    # Not a key, but all other keys of the section. They are apart because transformers defines their names and types.
    arguments: SkipJsonSchema[dict[str, Any]] = Field({})


SECTIONS: dict[str, type] = {"model": ModelRecipe, "data": DataRecipe, "training": TrainingRecipe}


@dataclasses.dataclass(kw_only=True)
class Recipe:
    """One run."""

    name: str  # the file's name without `.json`, and the name of the run's folder
    path: Path
    model: ModelRecipe
    data: DataRecipe
    training: TrainingRecipe
    encoder_recipe: str | None = None  # name of the recipe whose run gives the encoder

    def __post_init__(self):
        if self.data.normalize == "auto" and self.model.init == "scratch":
            self.data = dataclasses.replace(self.data, normalize="none")

    def to_dict(self) -> dict[str, Any]:
        """Return every key with its effective value. Saved as JSON, it loads as the same recipe again."""
        sections = {section: dataclasses.asdict(getattr(self, section)) for section in SECTIONS}
        sections["training"] |= sections["training"].pop("arguments")
        return sections


def loss_parts(loss: str | Mapping[str, float]) -> Mapping[str, float]:
    """Return `training.loss` as a sum: names of losses → their weights."""
    return {loss: 1.0} if isinstance(loss, str) else loss


def section_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each section, with hf_seg's own keys only."""
    schemas = {}
    for section, recipe in SECTIONS.items():
        schema = TypeAdapter(recipe).json_schema()
        keys = {key: schema["properties"][key] for key in key_types()[section]}  # in the order of the fields
        for key in keys.values():
            key["description"] = " ".join(key["description"].split())
            del key["title"]
        schemas[section] = schema | {"properties": keys}
    return schemas


def all_keys() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the JSON Schemas of hf_seg's own keys, by section and name. Each has a `description` and, unless the key
    is required, a `default`."""
    return {section: schema["properties"] for section, schema in section_schemas().items()}


@functools.cache
def key_types() -> dict[str, dict[str, TypeAdapter]]:
    """Return the types of hf_seg's own keys, by section and name."""
    return {
        section: {
            name: TypeAdapter(Annotated[field.annotation, Field(), *field.metadata], config=STRICT)
            for name, field in recipe.__pydantic_fields__.items()
            if name != "arguments"
        }
        for section, recipe in SECTIONS.items()
    }


_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a string",
    "object": "an object {...}",
    "array": "a list [...]",
    "null": "null",
}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "minLength": "not empty",
    "minProperties": "not empty",
}


def expectation(schema: Mapping[str, Any]) -> str:
    """Describe in words what the JSON Schema of a key accepts: `a whole number, at least 1, or null`."""
    if "anyOf" in schema:
        choices = [expectation(branch) for branch in schema["anyOf"]]
    elif "const" in schema or "enum" in schema:
        choices = [json.dumps(choice) for choice in schema.get("enum", [schema.get("const")])]
    else:
        words = _WORDS.get(schema.get("type", ""), "any value")
        if schema.get("items"):
            words = f"a list of {schema['maxItems']}, each" if "maxItems" in schema else f"{words}, each"
            words += f" {expectation(schema['items'])}"
        elif isinstance(schema.get("additionalProperties"), dict):
            words += f" in which each value is {expectation(schema['additionalProperties'])}"
        # the limits of 64-bit integers need no mention
        limits = {key: schema[key] for key in _LIMITS if abs(schema.get(key, 2**63)) < 2**63}
        said = [_LIMITS[key].format(limit) for key, limit in limits.items()]
        if {"minimum", "maximum"} <= limits.keys():
            said = [f"from {limits['minimum']} to {limits['maximum']}", *said[2:]]
        return ", ".join([words, *said])
    if len(choices) == 1:
        return choices[0]
    limited = "anyOf" in schema and any(", " in choice for choice in choices)
    return ", ".join(choices[:-1]) + (", or " if limited else " or ") + choices[-1]


def fits(value: Any, kind: TypeAdapter) -> bool:
    """Return whether a JSON value is of a type and within its limits: `true` is not a number, 64.0 not a whole one."""
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True


def _nearest_size(value: Any) -> Any:
    """Round numbers to the nearest multiple of 32, at least 32; other values stay as they are."""
    if isinstance(value, list):
        return [_nearest_size(side) for side in value]
    return max(32, round(value / 32) * 32) if type(value) in (int, float) else value


def mismatch(value: Any, kind: TypeAdapter) -> tuple[str, str] | None:
    """Return what is wrong with a value, such as `must be a number, above 0, but is "1"`, and the remedy; or None."""
    if fits(value, kind):
        return None
    shown, remedy = json.dumps(value, ensure_ascii=False), ""
    if isinstance(value, str):
        try:
            remedy = "write it without quotes" if fits(json.loads(value), kind) else ""
        except (ValueError, RecursionError):
            pass
    elif isinstance(value, int | float) and fits(str(value), kind):
        remedy = "write it in quotes"
    elif kind is key_types()["data"]["image_size"] and fits(nearest := _nearest_size(value), kind):
        remedy = f"the nearest is {nearest}"
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"must be {expectation(kind.json_schema())}, but is {shown}", remedy
