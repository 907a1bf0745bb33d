"""The keys of a recipe: each one's meaning, type, range and default stand here once, on the dataclass fields.

The checks, the JSON Schema and docs/recipes.md follow from them. Standard library only, like all that reads recipes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass
from typing import Any, Literal

from hf_seg.recipe.schema import fragment


def _key(description: str, default: Any = MISSING, **limits: float) -> Any:
    """A recipe key: `limits` are JSON Schema keywords such as `minimum` or `multipleOf`."""
    metadata = {"description": description, "limits": limits}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class ModelRecipe:
    """The `model` section: the architecture and where its first weights come from."""

    arch: Literal["fcn", "segformer", "auto"] = _key(
        "The architecture: FCN (a CNN), SegFormer (a transformer), or any other of transformers, named in path."
    )
    path: str | None = _key(
        "auto only: a Hub id, a folder or a config.json of a semantic segmentation model, or a model type of "
        "transformers, such as mobilevit, in its default sizes. It gives the architecture; init says whether also the "
        "encoder's weights.",
        None,
        minLength=1,
    )
    encoder: str | None = _key(
        "FCN only: name of any timm CNN that can give feature maps. null: resnet50. "
        "SegFormer's sizes are set in config instead.",
        None,
        minLength=1,
    )
    init: Literal["scratch", "imagenet", "checkpoint"] = _key(
        "Where the first weights come from: random; an ImageNet encoder; the encoder of another run. "
        "The head is always fresh.",
        "scratch",
    )
    encoder_weights: str | None = _key(
        "With imagenet: a Hub id or a local file or folder (null: timm/resnet50.tv2_in1k for FCN, nvidia/mit-b0 for "
        "SegFormer). With checkpoint: a run's folder, a Hub id, or the name of another recipe, which is then trained "
        "first (null, auto only: path). With scratch: none.",
        None,
    )
    freeze_encoder: bool = _key(
        "Train the head only. The encoder's batch-norm statistics are frozen with its weights.", False
    )
    config: dict[str, Any] = _key(
        'Keys of the model\'s configuration class that differ from its defaults, e.g. {"strides": [2, 2, 2, 2]}.', {}
    )


@dataclass(kw_only=True)
class DataRecipe:
    """The `data` section: the data set and how its pairs of image and mask are prepared."""

    name: Literal["oxford_pet", "cityscapes", "synthetic_pet", "synthetic_cityscapes", "folder", "hub"] = _key(
        "The data set; folder: your own pictures and masks; hub: a data set with an image and a mask column, on the "
        "Hugging Face Hub or in Parquet files."
    )
    root: str | None = _key(
        "Folder of the data. null: a folder under $HF_SEG_DATA, else a download where there is one. "
        "Synthetic data is generated and has none; your own folder must be named. With hub: the folder of "
        "classes.json and split.json (null: path, when that is a folder).",
        None,
        minLength=1,
    )
    path: str | None = _key(
        "hub only: a Hub id, org/name, or a folder of Parquet files or of what save_to_disk has written.",
        None,
        minLength=1,
    )
    revision: str | None = _key("hub only: a commit, tag or branch on the Hub. null: main.", None, minLength=1)
    config_name: str | None = _key(
        "hub only: which of the data set's configurations. null: the only one, or its default.", None, minLength=1
    )
    image_column: str | None = _key("hub only: the column of images. null: found by name and type.", None, minLength=1)
    mask_column: str | None = _key("hub only: the column of masks. null: found by name and type.", None, minLength=1)
    image_size: int = _key(
        "Side, in pixels, of the square that image and mask are resized to.",
        64,
        minimum=32,
        maximum=2048,
        multipleOf=32,
    )
    normalize: Literal["none", "imagenet", "inception"] = _key(
        "After scaling to [0, 1]: nothing more; ImageNet's mean and standard deviation; or 0.5 for both (to [-1, 1]), "
        "as Inception and timm's tf_ models.",
        "none",
    )
    augment: Literal["none", "flip", "standard", "strong"] = _key(
        "Augmentation of training pairs: none; mirrored; mirrored, scaled and cropped, with colour changes; the same "
        "with smaller crops, and turned.",
        "none",
    )
    max_train_samples: int | None = _key("Only the first n pairs of the training split.", None, minimum=1)
    max_validation_samples: int | None = _key("Only the first n pairs of the validation split.", None, minimum=1)
    max_test_samples: int | None = _key("Only the first n pairs of the test split.", None, minimum=1)
    cache: bool | str = _key(
        "Whether resized pairs are kept on the disk, so that no picture is decoded twice. true: in $HF_HOME/hf_seg; "
        "or name a folder.",
        True,
    )
    on_bad_pair: Literal["stop", "drop"] = _key(
        "folder and hub only. What a pair that cannot be used does: stop the run before it trains; or be left out, "
        "which results.json lists, and the scores are then not comparable.",
        "stop",
    )


@dataclass(kw_only=True)
class TrainingRecipe:
    """The `training` section: the study's protocol by default, and any other argument of transformers' Trainer."""

    num_train_epochs: int = _key("Passes over the training split.", 30, minimum=1, maximum=100_000)
    global_train_batch_size: int = _key(
        "Images per optimiser step, over all ranks and accumulation steps together.", 64, minimum=1, maximum=65_536
    )
    gradient_accumulation_steps: int = _key(
        "Parts that each rank's share of a batch is worked off in, to save memory. Batch norm sees the single parts.",
        1,
        minimum=1,
        maximum=65_536,
    )
    learning_rate: float = _key("Learning rate of the first epoch.", 1e-3, exclusiveMinimum=0, maximum=10)
    weight_decay: float = _key("AdamW's weight decay.", 0.01, minimum=0, maximum=10)
    amsgrad: bool = _key("AdamW's AMSGrad variant.", True)
    max_grad_norm: float = _key(
        "Gradients are clipped to this norm. 0: no clipping.", 1.0, minimum=0, maximum=1_000_000
    )
    lr_scheduler_type: str = _key(
        "exponential (times lr_decay_per_epoch after each epoch) or one of transformers' schedules, e.g. cosine.",
        "exponential",
    )
    lr_decay_per_epoch: float = _key(
        "Factor on the learning rate after each epoch of the exponential schedule.",
        0.98,
        exclusiveMinimum=0,
        maximum=1,
    )
    eval_every_epochs: int = _key(
        "Epochs between validations. Each validation saves a checkpoint; the best one by validation mIoU is kept.",
        2,
        minimum=1,
        maximum=100_000,
    )
    seed: int = _key("Seed of initial weights, shuffling and augmentation.", 0, minimum=0, maximum=2**32 - 1)
    bf16: bool | Literal["auto"] = _key("bfloat16 mixed precision. auto: where the device gains by it.", "auto")
    channels_last: bool | Literal["auto"] = _key("Memory layout of images. auto: where it is faster.", "auto")
    sync_batch_norm: bool | Literal["auto"] = _key(
        "Batch norm's statistics over the images of all ranks (GPUs only). auto: where a rank has fewer than 16 "
        "images at a time.",
        "auto",
    )
    report_to: str | list[str] = _key(
        "Where curves are reported to: auto (TensorBoard when installed), none, all, or names such as wandb.", "auto"
    )
    push_to_hub: bool = _key("Upload the model, its processor and its card to the Hugging Face Hub.", False)
    # Not a key: what else the section held. Flat in JSON, apart here because transformers owns names and types.
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


SECTIONS: dict[str, type] = {"model": ModelRecipe, "data": DataRecipe, "training": TrainingRecipe}


def all_keys() -> dict[str, dict[str, dict[str, Any]]]:
    """JSON Schema of hf_seg's own keys, by section and name, with `description` and, unless required, `default`."""
    return {section: _section_keys(recipe) for section, recipe in SECTIONS.items()}


def _section_keys(recipe: type) -> dict[str, dict[str, Any]]:
    keys = {}
    for field in dataclasses.fields(recipe):
        if field.metadata:
            schema = fragment(field.type) | field.metadata["limits"] | {"description": field.metadata["description"]}
            if field.default_factory is not MISSING:
                schema["default"] = field.default_factory()
            elif field.default is not MISSING:
                schema["default"] = field.default
            keys[field.name] = schema
    return keys
