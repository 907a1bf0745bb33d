"""Models of segmentation_models_pytorch. This file is uploaded with models, so it imports only libraries and
`configuration_smp`."""

import difflib
import importlib.util
import inspect

import timm
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from .configuration_smp import SmpConfig

# Functions import segmentation_models_pytorch, so that other models can be used where it is not installed.


def build_segmenter(config: SmpConfig, **timm_arguments) -> nn.Module:
    """Build smp's own model: `encoder`, `decoder` and `segmentation_head`.

    Args:
        timm_arguments: passed on to `timm.create_model`. Without `encoder_weights=True` the weights are random.

    Raises:
        ImportError: where segmentation_models_pytorch is not installed.
        ValueError: when neither timm nor smp knows the encoder, or smp does not know the architecture or an argument.
        Exception: of any type, from smp or timm, when architecture and encoder do not fit, or an argument's value.
    """
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        what = "it is a model of segmentation_models_pytorch, which is not installed"
        raise ImportError(f"{what}: run `pip install segmentation-models-pytorch`")
    import segmentation_models_pytorch as smp

    known, own = timm.list_models(pretrained="." in config.encoder), smp.encoders.get_encoder_names()
    if config.encoder not in (*known, *own):
        close = difflib.get_close_matches(config.encoder.removeprefix("tu-"), {*known, *own}, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`timm.list_models()` lists timm's names."
        raise ValueError(f"encoder {config.encoder!r} is neither a timm model nor an encoder of smp: {hint}")
    if config.architecture not in smp.MODEL_ARCHITECTURES_MAPPING:
        names = ", ".join(smp.MODEL_ARCHITECTURES_MAPPING)
        raise ValueError(f"SmpConfig.architecture must be one of {names}, not {config.architecture!r}.")
    # smp passes unknown arguments on to timm, which would open files that they name
    arguments, build = config.arguments or {}, smp.MODEL_ARCHITECTURES_MAPPING[config.architecture].__init__
    accepted = inspect.signature(build).parameters.keys() - {"encoder_name", "encoder_weights"}
    if unknown := sorted(arguments.keys() - accepted):
        raise ValueError(f"SmpConfig.arguments has {unknown[0]!r}, which {config.architecture} does not take.")
    if config.architecture == "dpt":  # a ViT: its positions are interpolated for images of another size
        timm_arguments["dynamic_img_size"] = True
    return smp.create_model(
        config.architecture,
        f"tu-{config.encoder}" if config.encoder in known else config.encoder,
        classes=config.num_labels,
        **{"encoder_weights": None} | arguments | timm_arguments,
    )


class SmpForSemanticSegmentation(PreTrainedModel):
    """A U-Net or another model of segmentation_models_pytorch (smp), as a model of transformers.

    It has smp's modules, and so the same tensor names, logits and initial weights as smp's own model.

    Args:
        config ([`SmpConfig`]): the architecture, the encoder, smp's arguments, the number of labels.

    Raises:
        Exception: as [`build_segmenter`].

    Source: https://github.com/qubvel-org/segmentation_models.pytorch (MIT), which names the paper of each model.
    """

    config_class = SmpConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The loss is a plain mean: Trainer must divide it by the accumulation steps, not multiply it by the ranks.
    accepts_loss_kwargs = False

    def __init__(self, config: SmpConfig):
        super().__init__(config)
        segmenter = build_segmenter(config)
        self.encoder, self.decoder = segmenter.encoder, segmenter.decoder
        self.segmentation_head = segmenter.segmentation_head
        if not any(parameter.is_meta for parameter in self.parameters()):
            for module in self.modules():
                module._is_hf_initialized = True  # by smp and timm; otherwise transformers draws all weights again
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Only for tensors that `from_pretrained` does not find in a file. It replaces the functions of `nn.init` by
        # ones that do not change what it has loaded.
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head

        if not isinstance(module, nn.Conv2d | nn.Linear):
            super()._init_weights(module)
        elif module in {*self.decoder.modules()}:
            initialize_decoder(module)
        elif module in {*self.segmentation_head.modules()}:
            initialize_head(module)
        else:  # torch's default; each timm encoder has its own initial weights
            module.reset_parameters()
        # Buffers that timm does not save (blur kernels, rotary positions) are not in a checkpoint either.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.LongTensor | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple:
        """Segment a batch of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, 3, height, width)`): RGB, scaled as in training.
            labels (`torch.LongTensor` of shape `(batch, height, width)`, *optional*): class ids from 0 to
                `num_labels - 1`; `config.semantic_loss_ignore_index` marks pixels that do not count.
            return_dict (`bool`, *optional*): False returns a tuple; by default `config.return_dict`.

        Returns:
            [`SemanticSegmenterOutput`]: `logits` of shape `(batch, num_labels, height, width)` with smp's defaults;
            with `labels`, `loss` is the mean cross-entropy of the logits enlarged to the labels' size.
        """
        features = self.encoder(pixel_values)
        # a ViT returns a tuple of its feature maps and its class tokens
        decoded = self.decoder(*features) if isinstance(features, tuple) else self.decoder(features)
        logits = self.segmentation_head(decoded)
        loss = None
        if labels is not None:
            enlarged = nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = nn.functional.cross_entropy(enlarged, labels, ignore_index=self.config.semantic_loss_ignore_index)
        output = SemanticSegmenterOutput(loss=loss, logits=logits)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


# Makes `save_pretrained` copy this file next to the weights and name it in config.json, also if it came from the Hub.
SmpForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
