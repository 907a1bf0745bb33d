"""`arch: "auto"`: any other semantic segmentation model of transformers, under the protocol of the two of ours."""

from __future__ import annotations

from huggingface_hub.errors import HFValidationError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from .weight_files import WeightsError


def read_config(path: str) -> tuple[type[PreTrainedConfig], type[PreTrainedModel], dict]:
    """Read the configuration that a recipe's `model.path` names. Code that comes with it is not run.

    Args:
        path (`str`): a folder with config.json, such a file, a Hub id, or a model type of transformers such as
            "mobilevit", whose default sizes are meant.

    Returns:
        `tuple[type[PreTrainedConfig], type[PreTrainedModel], dict]`: the configuration's class, the class of its
        model for semantic segmentation, and its keys (none of a model type: the class's defaults).

    Raises:
        WeightsError: when there is no such configuration, or it is of a model that does not segment.
    """
    try:
        if path in CONFIG_MAPPING:
            config_class, given = CONFIG_MAPPING[path], {}
        else:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            config_class, given = type(config), config.to_dict()
    except (OSError, ValueError, KeyError, TypeError, HFValidationError) as error:
        raise WeightsError(
            f"model.path: {path} gives no configuration ({' '.join(str(error).split())}); name a folder, a "
            "config.json, a Hub id (offline, one that is in the cache) or a model type of transformers."
        ) from error
    if config_class not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        types = sorted(known.model_type for known in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING)
        raise WeightsError(
            f"model.path: {path} is a model of type {config_class.model_type}, and transformers has no semantic "
            f"segmentation for it; it has {', '.join(types)}."
        )
    if hasattr(config_class, "use_auxiliary_head"):
        given["use_auxiliary_head"] = False  # only a loss of the model's own would train it
    return config_class, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING[config_class], given


def reset_batch_norms(model: PreTrainedModel) -> None:
    """Start batch norms as PyTorch does: scale 1, shift 0.

    transformers 5.24 draws MobileViT's scales from N(0, 0.02), which is harmless where weights are loaded over them.
    From scratch each layer shrinks what passes fiftyfold, so that next to nothing of the image reaches the logits.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()
