"""Configuration of smp's models. This file is uploaded with models, so it imports libraries only, not hf_seg."""

from typing import Any

from transformers import PreTrainedConfig


class SmpConfig(PreTrainedConfig):
    """The configuration of an [`SmpForSemanticSegmentation`].

    Args:
        architecture (`str`, defaults to `"unet"`): a name that `segmentation_models_pytorch.create_model` takes, such
            as `"unetplusplus"`, `"deeplabv3plus"`, `"fpn"`, `"upernet"` or `"dpt"`.
        encoder (`str`, defaults to `"resnet50"`): name of a timm model, without smp's prefix `tu-`; or, if timm has no
            model of that name, of one of smp's own encoders, such as `"mit_b0"`.
        arguments (`dict`, *optional*): other arguments of smp's class, such as `decoder_channels`.
        semantic_loss_ignore_index (`int`, defaults to 255): label of the pixels that the loss leaves out; the name is
            SegFormer's.
        kwargs: everything else that a `PreTrainedConfig` takes: `num_labels`, `id2label`, `label2id`, ...

    Whether smp can build it is checked by the model: a configuration can be read without smp.
    """

    model_type = "hf_seg_smp"

    architecture: str = "unet"
    encoder: str = "resnet50"
    arguments: dict[str, Any] | None = None
    semantic_loss_ignore_index: int = 255


# Makes `save_pretrained` copy this file next to the weights and name it in config.json, also if it came from the Hub.
SmpConfig.register_for_auto_class()
