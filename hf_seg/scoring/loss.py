"""The training losses, and a check for losses that are not finite that does not wait for the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_seg.scoring.upsampling import upsample

FOCAL_GAMMA = 2  # the best value that Lin et al. tried
MAX_CLASS_WEIGHT = 10.0


class SegLoss:
    """A weighted sum of losses, each of which is a mean over the *global* batch.

    If the means of micro-batches or ranks were averaged, the weight of a pixel would depend on the number of ignored
    pixels in its micro-batch. Here each micro-batch sums over its own pixels or images and divides by the counts of
    the global batch, so loss and gradient do not depend on accumulation steps or the number of ranks. Each loss is
    therefore a sum divided by a count:

    - `cross_entropy` and `focal` (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, with softmax) are
      means over labelled pixels.
    - `dice` (Milletari et al., "V-Net", 3DV 2016) and `lovasz` (Lovász-Softmax: Berman et al., "The Lovász-Softmax
      Loss", CVPR 2018) need all pixels of a region, so they are computed separately for each image and class, then
      averaged over the classes in the image's mask, and last over the images that have a labelled pixel.

    Args:
        parts (`Mapping[str, float]`): the name of each loss → its weight in the sum.
        class_weights (float32 `torch.Tensor` of shape `(C,)`, *optional*): how much a pixel of each class counts in
            `cross_entropy` and `focal`, both in the sum and in its divisor, as in `torch.nn.CrossEntropyLoss`.
        label_smoothing (`float`): for `cross_entropy`, as torch defines it.
    """

    def __init__(
        self,
        parts: Mapping[str, float] | None = None,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = 255,
    ):
        self.parts = parts or {"cross_entropy": 1.0}
        self.class_weights, self.label_smoothing, self.ignore_index = class_weights, label_smoothing, ignore_index

    def count(self, labels: Tensor) -> Tensor:
        """Count labels `(batch, height, width)`; returns float32 of shape `(2,)`. The first count is the labelled
        pixels, weighted by class; the second is the images with a labelled pixel. The counts of a batch's parts add up
        to those of the batch."""
        images = (labels != self.ignore_index).flatten(1).any(dim=1)
        return torch.stack([self._pixel_weights(labels).sum(), images.float().sum()])

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        """Return the part of the global batch's loss that comes from a micro-batch.

        Args:
            outputs (`SemanticSegmenterOutput`): with `logits` of shape `(batch, C, h, w)`, which are upsampled.
            labels (`torch.LongTensor` of shape `(batch, height, width)`): class ids, or `ignore_index`.
            num_items_in_batch (`torch.Tensor` of shape `(2,)`, *optional*): [`~SegLoss.count`] of the global batch; by
                default that of `labels`. (`Trainer` calls it so.)

        Returns:
            A float32 scalar. Cross-entropy is in nats; `dice` and `lovasz` are in [0, 1].
        """
        counts = self.count(labels) if num_items_in_batch is None else num_items_in_batch
        pixels, images = torch.where(counts > 0, counts, 1)
        logits = upsample(outputs.logits, labels.shape[-2:])
        total = logits.new_zeros(())
        for name, weight in self.parts.items():
            if name in REGION_LOSSES:
                share = self._sum_over_images(REGION_LOSSES[name], logits, labels) / images
            else:
                share = self._sum_over_pixels(name, logits, labels) / pixels
            total = total + weight * share
        return total

    def _sum_over_pixels(self, name: str, logits: Tensor, labels: Tensor) -> Tensor:
        if torch.are_deterministic_algorithms_enabled():
            # in this mode CUDA raises an error for 4-D logits, but not for a 2-D list of pixels; slower on the CPU
            logits, labels = logits.permute(0, 2, 3, 1).flatten(0, 2), labels.flatten()
        if name == "cross_entropy":
            return F.cross_entropy(
                logits,
                labels,
                self.class_weights,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                reduction="sum",
            )
        nats = F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="none")
        return (self._pixel_weights(labels) * (1 - (-nats).exp()) ** FOCAL_GAMMA * nats).sum()

    def _sum_over_images(self, loss: Callable, logits: Tensor, labels: Tensor) -> Tensor:
        classes = torch.arange(logits.shape[1], device=labels.device)
        true = labels.flatten(1)[:, None] == classes[:, None]  # (batch, C, pixels); an ignored pixel has no class
        labelled = (labels != self.ignore_index).flatten(1)[:, None]
        probabilities = logits.softmax(dim=1).flatten(2) * labelled
        present = true.any(dim=2)
        # one class at a time, so that the temporary tensors of a loss are those of one class
        pairs = zip(probabilities.unbind(1), true.unbind(1), strict=True)
        by_class = torch.stack([loss(*pair) for pair in pairs], dim=1)
        return ((by_class * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)).sum()

    def _pixel_weights(self, labels: Tensor) -> Tensor:
        """How much each pixel counts, float32 of the shape of `labels`; 0 where it is ignored."""
        labelled = (labels != self.ignore_index).float()
        if self.class_weights is None:
            return labelled
        return labelled * self.class_weights[labels.clamp(max=len(self.class_weights) - 1)]


def dice_loss(probabilities: Tensor, true: Tensor) -> Tensor:
    """1 minus the Dice score 2·|A∩B| / (|A| + |B|) of a class, with sums of probabilities instead of areas.

    Args:
        probabilities (of shape `(batch, pixels)`): those of the class, 0 where a pixel is ignored.
        true (`torch.BoolTensor` of the same shape): the pixels of the class. The result means nothing for an image
            without any, and [`SegLoss`] leaves it out.

    Returns:
        `torch.Tensor` of shape `(batch,)`, in [0, 1].

    Source: Milletari, Navab and Ahmadi, "V-Net", 3DV 2016, with squared terms in the denominator. The form without
    squares, used here and in most libraries, is from Sudre et al., "Generalised Dice overlap", DLMIA 2017.
    """
    shared = (probabilities * true).sum(dim=1)
    return 1 - 2 * shared / (probabilities.sum(dim=1) + true.sum(dim=1)).clamp(min=1)


def lovasz_loss(probabilities: Tensor, true: Tensor) -> Tensor:
    """The Lovász extension of 1 minus the IoU of a class: equal to it for hard predictions, and convex in between.

    Arguments and result are as in [`dice_loss`].

    Source: Berman, Rannen Triki and Blaschko, "The Lovász-Softmax Loss", CVPR 2018, algorithm 1. Ignored pixels have
    an error of 0 here, so they are sorted last and add nothing.
    """
    errors = (true.float() - probabilities).abs()
    with torch.no_grad():  # as long as the order of the errors stays the same, the loss is linear in them
        order = errors.argsort(dim=1, descending=True, stable=True)
        # 1 minus the IoU if the 1, 2, 3 ... pixels with the largest errors were wrong and all others right
        wrong = torch.arange(1, errors.shape[1] + 1, device=errors.device)
        area, missed = true.sum(dim=1, keepdim=True), true.gather(1, order).cumsum(dim=1)
        jaccard = 1 - (area - missed) / (area + wrong - missed)
        slopes = jaccard.diff(dim=1, prepend=torch.zeros_like(jaccard[:, :1]))
        slopes = torch.zeros_like(errors).scatter_(1, order, slopes)
    return (errors * slopes).sum(dim=1)


REGION_LOSSES = {"dice": dice_loss, "lovasz": lovasz_loss}


def balanced_weights(pixels: np.ndarray) -> list[float]:
    """Class weights from pixel counts `(C,)`: the mean count of the classes that occur, divided by the class's count.

    With these weights all classes count equally, except for the cap: a class with few pixels gets at most
    `MAX_CLASS_WEIGHT`, since its loss would come from a few images and be noisy. A class that does not occur gets 0.
    """
    mean = pixels.sum() / max((pixels > 0).sum(), 1)
    return [min(float(mean / count), MAX_CLASS_WEIGHT) if count else 0.0 for count in pixels]


class LossWatch:
    """Checks each step's loss for NaN and infinity without waiting for the device. Up to `tolerated` bad losses in a
    row are accepted."""

    def __init__(self, tolerated: int = 0):
        self.tolerated, self.bad_in_a_row = tolerated, 0
        self.waiting: deque[tuple[torch.cuda.Event | None, Tensor, Any]] = deque()

    def add(self, loss: Tensor, note: Any) -> None:
        """Remember a loss (a scalar tensor) with a note on where it comes from."""
        event, value = None, loss.detach()
        if loss.device.type == "cuda":
            value = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self.waiting.append((event, value, note))

    def first_bad(self, wait: bool = False) -> tuple[float, Any] | None:
        """Return the first loss that is neither finite nor tolerated, with its note, or None. With `wait`, wait for
        the losses that the device has not computed yet; otherwise a later call checks them."""
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
