"""CUDA graphs of a model: a GPU that computes a small step faster than Python launches it need not wait."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput


class GraphedModel:
    """A model in train mode whose forward pass is one launch, and so is its backward pass.

    A graph has one shape: that of the largest batch so far, which is that of the first one as a rule. Batches of
    another shape, such as the last one of an epoch, are computed without it. Weights and batch-norm statistics are the
    model's own. Gradients lie in memory that the next backward pass overwrites, so they cannot be accumulated.

    Args:
        model (`PreTrainedModel`): on the GPU, where its tensors stay from now on.
        dtype (`torch.dtype`, *optional*): of autocast.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None):
        self.eager, self.graphed, self.sample = _Logits(model, dtype), None, None

    def __call__(self, pixel_values: Tensor, **_) -> SemanticSegmenterOutput:
        """Logits, float32 `(batch, C, h, w)`, of `pixel_values` `(batch, 3, height, width)`; valid until the next."""
        if self.sample is None or pixel_values.numel() > self.sample.numel():
            self.capture(pixel_values)
        same = pixel_values.shape == self.sample.shape
        return SemanticSegmenterOutput(logits=(self.graphed if same else self.eager)(pixel_values))

    def capture(self, pixel_values: Tensor) -> None:
        """Make the graphs for batches of this shape. Neither statistics nor random numbers change."""
        self.graphed, self.sample = None, pixel_values.clone()
        model, dtype = self.eager.model, self.eager.dtype
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with torch.random.fork_rng():  # PyTorch warms up by some passes, on a stream of its own
            self.graphed = torch.cuda.make_graphed_callables(
                _Logits(model, dtype), (self.sample,), allow_unused_input=True
            )
        for buffer, values in before:
            buffer.copy_(values)


class _Logits(nn.Module):
    """A model that takes and gives a tensor."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, pixel_values: Tensor) -> Tensor:
        # the class's forward: accelerate's has autocast with a cache, whose tensors do not belong to the graph
        forward, device = type(self.model).forward, pixel_values.device.type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            return forward(self.model, pixel_values=pixel_values).logits.float()
