"""SegFormer with fewer operations: the same function of the same tensors, up to rounding.

Each class here is one of transformers or torch with another `forward`. `make_fast` changes modules of a built model to
these classes. So names, shapes and initial values of tensors, `config.json` and the model's class stay those of
transformers, and transformers alone can load a saved model.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.segformer.modeling_segformer import (
    SegformerDecodeHead,
    SegformerDepthWiseConv,
    SegformerSequenceReduction,
)
from transformers.utils.generic import maybe_autocast

from .fast_depthwise import fast_class


class FastDecodeHead(SegformerDecodeHead):
    """The decode head with one matrix product per feature map, applied at the map's own size.

    transformers' head projects each map to `decoder_hidden_size` channels, enlarges all to the finest size,
    concatenates them and mixes them by a 1×1 convolution. Projection and mixing are linear and act on channels only.
    So they commute with bilinear enlargement, whose weights sum to one: `mix(concat(up(P_i h_i + b_i))) =
    sum(up(M_i P_i h_i)) + sum(M_i b_i)`, with `M_i` the columns of the mixing matrix that belong to map i. In
    evaluation mode, the batch norm becomes part of the same product.
    """

    def forward(self, encoder_hidden_states: tuple[Tensor, ...], **kwargs) -> Tensor:
        """Return logits `(batch, num_labels, h, w)` for maps `(batch, channels, height, width)`, the finest first,
        whose size is h, w. The last map may be `(batch, height·width, channels)` if it is square."""
        finest = encoder_hidden_states[0]
        norm = self.batch_norm
        projections = [projection.proj for projection in self.linear_projections]
        # rounding this product to 16 bits would cost more accuracy than all computations that use it
        dtype = torch.promote_types(norm.weight.dtype, torch.float32)
        with maybe_autocast(finest.device.type, enabled=False):
            mix, shift = self.linear_fuse.weight.to(dtype).flatten(1), 0
            if not norm.training:
                scale = norm.weight * (norm.running_var.to(dtype) + norm.eps).rsqrt()
                mix, shift = mix * scale[:, None], norm.bias - norm.running_mean * scale
            mixes = mix.split(self.linear_fuse.out_channels, dim=1)[::-1]  # transformers concatenates them reversed
            weights = [part @ each.weight.to(dtype) for part, each in zip(mixes, projections, strict=True)]
            bias = shift + sum(part @ each.bias.to(dtype) for part, each in zip(mixes, projections, strict=True))

        hidden = None
        for index, (features, weight) in reversed([*enumerate(zip(encoder_hidden_states, weights, strict=True))]):
            if features.ndim == 3:  # `reshape_last_stage: false`
                features = features.unflatten(1, (math.isqrt(features.shape[1]), -1))
            else:
                features = features.permute(0, 2, 3, 1)
            added = bias.to(features.dtype) if index == 0 else None
            mixed = F.linear(features, weight.to(features.dtype), added).permute(0, 3, 1, 2)  # in channels_last
            if index > 0:
                mixed = F.interpolate(mixed, size=finest.shape[2:], mode="bilinear", align_corners=False)
            hidden = mixed if hidden is None else hidden.add_(mixed)
        if norm.training:
            hidden = norm(hidden)
        return self.classifier(self.dropout(F.relu(hidden, inplace=True)))


class FastDepthWiseConv(SegformerDepthWiseConv):
    """The 3×3 depthwise convolution; maps with a side of at most 2 are padded before it, not by it."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Map `(batch, height·width, channels)` to the same shape."""
        if min(height, width) > 2:
            return super().forward(hidden_states, height, width)
        # oneDNN has no fast gradient of the weight where the kernel is larger than the map
        maps = F.pad(hidden_states.transpose(1, 2).unflatten(2, (height, width)), (1, 1, 1, 1))
        convolution = self.dwconv
        maps = F.conv2d(maps, convolution.weight, convolution.bias, groups=convolution.groups)
        return maps.flatten(2).transpose(1, 2)


class FastSequenceReduction(SegformerSequenceReduction):
    """The reduction of keys and values. Its patches do not overlap, so one matrix product replaces the convolution."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Map `(batch, height·width, channels)` to `(batch, tokens, channels)`."""
        convolution = self.sequence_reduction
        side = convolution.stride[0]
        rows, columns = height // side, width // side
        maps = hidden_states.unflatten(1, (height, width))[:, : rows * side, : columns * side]
        patches = maps.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)  # a view in channels_last
        reduced = F.linear(patches.flatten(3).flatten(1, 2), weight, convolution.bias)
        return self.layer_norm(reduced)


class FastDropout(nn.Dropout):
    """Dropout that on a CPU draws its mask for eight elements at a time; each is dropped with probability exactly `p`.

    torch draws one number per element there. The seed comes from torch's generator, whose state is in checkpoints, so
    that a resumed run draws the same masks.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` of any shape; in training, with some elements zero and the others divided by `1 - p`."""
        drawn = self.training and 0 < self.p < 1 and input.device.type == "cpu"
        if not drawn or torch.compiler.is_compiling():
            return super().forward(input)
        generator = np.random.Generator(np.random.SFC64(torch.empty((), dtype=torch.int64).random_().item()))
        count = input.numel()
        random = generator.integers(2**64, size=-(-count // 8), dtype=np.uint64).view(np.uint8)[:count]
        # a byte below the threshold keeps its element; for 1 in 256, equal to it, a new number decides
        threshold, remainder = divmod(256 * (1 - self.p), 1)
        kept = random < int(threshold)
        undecided = np.flatnonzero(random == int(threshold))
        kept[undecided] = generator.random(len(undecided)) < remainder
        mask = torch.empty_like(input, requires_grad=False)
        mask.as_strided((count,), (1,)).copy_(torch.from_numpy(kept)).div_(1 - self.p)
        return input * mask


FASTER = {
    SegformerDecodeHead: FastDecodeHead,
    SegformerDepthWiseConv: FastDepthWiseConv,
    SegformerSequenceReduction: FastSequenceReduction,
    nn.Dropout: FastDropout,
}


def make_fast(model: PreTrainedModel) -> None:
    """Change modules in place: those of transformers' SegFormer to the classes in this file, depthwise convolutions of
    any model to those of `fast_depthwise.py`. All other modules stay as they are."""
    for module in model.modules():
        if model.config.model_type == "segformer" and type(module) in FASTER:
            module.__class__ = FASTER[type(module)]
        elif faster := fast_class(module):
            module.__class__ = faster
