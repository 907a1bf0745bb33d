"""The loss that both models are trained on, and an eye on it that does not wait for the device."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_seg.scoring.upsampling import upsample


def segmentation_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None, ignore_index: int = 255
) -> Tensor:
    """Cross-entropy of the upsampled logits, averaged over the labelled pixels of the *global* batch.

    A mean of the means of micro-batches or ranks would weight a pixel by how many ignored pixels happen to lie in its
    micro-batch. This one does not, so loss and gradient do not depend on accumulation steps or the number of ranks.

    Args:
        outputs (`SemanticSegmenterOutput`): with `logits` of shape `(batch, C, h, w)`.
        labels (`torch.LongTensor` of shape `(batch, height, width)`): class ids, or `ignore_index`.
        num_items_in_batch (`torch.Tensor`, *optional*): labelled pixels of the global batch; by default of `labels`.

    Returns:
        A float32 scalar: this micro-batch's share of the mean, in nats.
    """
    if num_items_in_batch is None:
        num_items_in_batch = (labels != ignore_index).sum()
    logits = upsample(outputs.logits, labels.shape[-2:])
    if torch.are_deterministic_algorithms_enabled():
        # CUDA sums over images in an order of its own and refuses here; over rows it does not. Slower on the CPU.
        logits, labels = logits.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)


class LossWatch:
    """Looks at each step's loss without waiting for the device to have computed it; so many bad ones in a row are
    `tolerated`."""

    def __init__(self, tolerated: int = 0):
        self.tolerated, self.bad_in_a_row = tolerated, 0
        self.waiting: deque[tuple[torch.cuda.Event | None, Tensor, Any]] = deque()

    def add(self, loss: Tensor, note: Any) -> None:
        """Remember a loss, a scalar, with a note on where it comes from."""
        event, value = None, loss.detach()
        if loss.device.type == "cuda":
            value = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((event, value, note))

    def first_bad(self, wait: bool = False) -> tuple[float, Any] | None:
        """The first loss that is neither finite nor tolerated, with its note; `wait` for those still on the device."""
        while self.waiting:
            event, value, note = self.waiting[0]
            if event is not None and not event.query():
                if not wait:
                    return None
                event.synchronize()
            self.waiting.popleft()
            self.bad_in_a_row = 0 if math.isfinite(value) else self.bad_in_a_row + 1
            if self.bad_in_a_row > self.tolerated:
                return float(value), note
        return None
