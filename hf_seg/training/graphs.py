"""CUDA graphs of a model: they help where the GPU computes a small step faster than Python can launch it."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput


class GraphedModel:
    """A model in train mode whose forward pass is a single launch, as is its backward pass.

    A graph has one shape: that of the largest batch so far, usually the first one. Batches of
    another shape, such as the last one of an epoch, are computed without it. Weights and batch-norm statistics are the
    model's own. Gradients lie in memory that the next backward pass overwrites, so they cannot be accumulated.

    Args:
        model (`PreTrainedModel`): on the GPU, where its tensors stay from now on.
        dtype (`torch.dtype`, *optional*): for autocast; None: no autocast.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None):
        self.eager, self.graphed, self.sample = _Logits(model, dtype), None, None

    def __call__(self, pixel_values: Tensor, **_) -> SemanticSegmenterOutput:
        """Map `pixel_values` `(batch, 3, height, width)` to float32 logits `(batch, C, h, w)`.

        They are valid until the next call.
        """
        if self.sample is None or pixel_values.numel() > self.sample.numel():
            self.capture(pixel_values)
        same = pixel_values.shape == self.sample.shape
        return SemanticSegmenterOutput(logits=(self.graphed if same else self.eager)(pixel_values))

    def capture(self, pixel_values: Tensor) -> None:
        """Capture the graphs for batches of this shape. Batch-norm statistics and random state do not change."""
        self.graphed, self.sample = None, pixel_values.clone()
        model, dtype = self.eager.model, self.eager.dtype
        before = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with torch.random.fork_rng():  # PyTorch first runs some warm-up passes, on a separate stream
            self.graphed = torch.cuda.make_graphed_callables(
                _Logits(model, dtype), (self.sample,), allow_unused_input=True
            )
        for buffer, values in before:
            buffer.copy_(values)


class _Logits(nn.Module):
    """The model as a module that maps a tensor to a tensor, which CUDA graphs need."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype | None):
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, pixel_values: Tensor) -> Tensor:
        # the class's forward: accelerate wraps the model's in autocast with a cache, whose tensors no graph has
        forward, device = type(self.model).forward, pixel_values.device.type
        with torch.autocast(device, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            return forward(self.model, pixel_values=pixel_values).logits.float()
