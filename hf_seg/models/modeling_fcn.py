"""FCN on any timm CNN. This file is uploaded with models, so it imports only libraries and `configuration_fcn`."""

import difflib

import timm
import torch
from torch import nn
from torchvision.models.segmentation.fcn import FCNHead
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput

from .configuration_fcn import FCNConfig


def build_encoder(name: str, output_stride: int, logits_stride: int | None = None, **timm_arguments) -> nn.Module:
    """Build a timm CNN that returns its last feature map, and finer ones if asked.

    Args:
        output_stride (`int`): image pixels per feature along one axis: 8, 16 or 32.
        logits_stride (`int`, *optional*): stride of the finest feature map to return; by default `output_stride`.
        timm_arguments: passed on to `timm.create_model`. Without `pretrained=True` the weights are random.

    Returns:
        `nn.Module`: maps `(batch, 3, height, width)` to a list of `(batch, channels, height/stride, width/stride)`,
        one for each stride that the CNN has from `logits_stride` to `output_stride`, the finest first.

    Raises:
        ValueError: when timm does not know the name, or the model is not a CNN that can have these strides.
    """
    known = timm.list_models(pretrained="." in name)  # "resnet50.a1_in1k" names weights as well
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`timm.list_models()` lists the names."
        raise ValueError(f"encoder {name!r} is not a timm model: {hint}")
    # timm returns five stages by default, which fails for the families that have four.
    arguments = {"features_only": True, "output_stride": output_stride, "out_indices": (-1,), **timm_arguments}
    try:
        encoder = timm.create_model(name, **arguments)
        reduction = encoder.feature_info.reduction()[-1]
    except (TypeError, AssertionError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"encoder {name!r} is not a CNN with features at output stride {output_stride} in timm"
            f"{f' ({error})' if str(error) else ''}: choose one such as resnet50, regnety_032 or convnext_tiny."
        ) from error
    if reduction != output_stride:
        raise ValueError(f"encoder {name!r} ends at output stride {reduction}, not at the {output_stride} asked for.")
    if logits_stride in (None, output_stride):
        return encoder
    last_of = {stage["reduction"]: index for index, stage in enumerate(encoder.feature_info.info)}
    if logits_stride not in last_of:
        raise ValueError(f"encoder {name!r} has no feature map of stride {logits_stride}.")
    indices = sorted(index for stride, index in last_of.items() if stride >= logits_stride)
    return timm.create_model(name, **arguments | {"out_indices": indices})


class FCNForSemanticSegmentation(PreTrainedModel):
    """A fully convolutional network: a dilated timm CNN (`encoder`), then torchvision's `FCNHead` (`classifier`).

    With a `logits_stride` below the encoder's stride, 1×1 convolutions (`skips`) also score the classes on the
    encoder's finer feature maps. The scores are added from coarse to fine, each enlarged to the next one's size.

    With `encoder="resnet50"` it is torchvision's `fcn_resnet50`: same tensors (`backbone.*` is `encoder.*` here), same
    logits, same distribution of initial weights.

    Args:
        config ([`FCNConfig`]): the encoder's name, the stride, the number of labels.

    Raises:
        ValueError: when timm cannot build the encoder (see [`build_encoder`]).

    Source: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
    """

    config_class = FCNConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The loss is a plain mean: Trainer must divide it by the accumulation steps, not multiply it by the ranks.
    accepts_loss_kwargs = False

    def __init__(self, config: FCNConfig):
        super().__init__(config)
        self.encoder = build_encoder(config.encoder, config.output_stride, config.logits_stride)
        *finer, last = self.encoder.feature_info.channels()
        self.classifier = FCNHead(last, config.num_labels)
        self.skips = nn.ModuleList(nn.Conv2d(channels, config.num_labels, 1) for channels in finer)
        for module in self.classifier:
            if isinstance(module, nn.Dropout):
                module.p = config.dropout
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torchvision's initial weights, so that a run from scratch starts like its fcn_resnet50: transformers' default
        # is N(0, 0.02) everywhere, and timm's ResNets start each block's last batch norm at 0. The functions of `init`
        # do not change what `from_pretrained` has loaded.
        if isinstance(module, nn.Conv2d) and module in self.classifier:
            module.reset_parameters()
        elif module in self.skips:  # so that the coarse scores are learned first, as in the paper
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        # Buffers that timm does not save (blur kernels) are not in a checkpoint either.
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
            [`SemanticSegmenterOutput`]: `logits` of shape `(batch, num_labels, height/8, width/8)` at the default
            strides; with `labels`, `loss` is the mean cross-entropy of the logits enlarged to the labels' size.
        """
        *finer, last = self.encoder(pixel_values)
        logits = self.classifier(last)
        for features, score in zip(reversed(finer), reversed(self.skips), strict=True):
            size = features.shape[-2:]
            logits = nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            logits = logits + score(features)
        loss = None
        if labels is not None:
            enlarged = nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
            loss = nn.functional.cross_entropy(enlarged, labels, ignore_index=self.config.semantic_loss_ignore_index)
        output = SemanticSegmenterOutput(loss=loss, logits=logits)
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


# Makes `save_pretrained` copy this file next to the weights and name it in config.json, also if it came from the Hub.
FCNForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
