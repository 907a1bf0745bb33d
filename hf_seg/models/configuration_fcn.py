"""Configuration of the FCN. This file is uploaded with models, so it imports only libraries, nothing of hf_seg."""

from transformers import PreTrainedConfig


class FCNConfig(PreTrainedConfig):
    """The configuration of an [`FCNForSemanticSegmentation`].

    Args:
        encoder (`str`, defaults to `"resnet50"`): name of a timm CNN that has `features_only` and `output_stride`.
        output_stride (`int`, defaults to 8): image pixels per feature of the encoder along one axis: 8, 16 or 32.
        logits_stride (`int`, *optional*): image pixels per logit along one axis, a power of two from 2 up to
            `output_stride`, which is the default. A smaller value adds class scores of the encoder's finer feature
            maps: 8 at `output_stride` 32 is the paper's FCN-8s.
        dropout (`float` in [0, 1), defaults to 0.1): share of the head's channels dropped in training, as in
            torchvision's `FCNHead`.
        semantic_loss_ignore_index (`int`, defaults to 255): label of the pixels that the loss leaves out; the name is
            SegFormer's.
        kwargs: everything else that a `PreTrainedConfig` takes: `num_labels`, `id2label`, `label2id`, ...

    Raises:
        ValueError: when a value has the wrong type or is out of range. Whether timm knows the encoder is checked by
            the model: a configuration can be read without timm.
    """

    model_type = "hf_seg_fcn"

    encoder: str = "resnet50"
    output_stride: int = 8
    logits_stride: int | None = None
    dropout: float | int = 0.1
    semantic_loss_ignore_index: int = 255

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)

        def need(name: str, kinds: tuple[type, ...], holds, what: str) -> None:
            value = getattr(self, name)
            # True and False are integers in Python, but never valid here.
            if isinstance(value, bool) or not isinstance(value, kinds) or not holds(value):
                raise ValueError(f"FCNConfig.{name} must be {what}, not {value!r}.")

        need("encoder", (str,), lambda v: v.strip() != "", 'the name of a timm CNN such as "resnet50"')
        need("output_stride", (int,), lambda v: v in (8, 16, 32), "8, 16 or 32")
        if self.logits_stride is not None:
            strides = [stride for stride in (2, 4, 8, 16, 32) if stride <= self.output_stride]
            need("logits_stride", (int,), lambda v: v in strides, f"one of {', '.join(map(str, strides))}, or null")
        need("dropout", (int, float), lambda v: 0 <= v < 1, "a number, at least 0 and below 1")
        need("semantic_loss_ignore_index", (int,), lambda v: True, "a whole number")


# Makes `save_pretrained` copy this file next to the weights and name it in config.json, also if it came from the Hub.
FCNConfig.register_for_auto_class()
