"""Enlarge a model's small score maps to the size of the mask."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from hf_seg.data.geometry import Box, Size

CLASSES_AT_ONCE = 4


def upsample(logits: Tensor, size: Size) -> Tensor:
    """Resize logits `(batch, C, h, w)` to `size`, as `post_process_semantic_segmentation` does; returns float32."""
    if logits.shape[-2:] == size:  # such as those of a U-Net
        return logits.float()
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)


def upsample_picture(scores: Tensor, size: Size, frame: Size | None, box: Box | None) -> Tensor:
    """[`upsample`] only the part in `box`, where the picture lies in `frame`, the size of the model's input."""
    if box is None:
        return upsample(scores, size)
    top, left, bottom, right = box
    return upsample(upsample(scores, frame)[..., top:bottom, left:right], size)


def upsampled_argmax(
    scores: Tensor, size: Size, positive: bool = False, frame: Size | None = None, box: Box | None = None
) -> tuple[Tensor, Tensor]:
    """Return the class of each pixel at `size`.

    A few classes are enlarged at a time, since 150 classes of a photograph would take gigabytes.

    Args:
        scores: `(batch, C, h, w)`: logits, or positive numbers if `positive`.
        frame, box: where the picture lies, as in [`upsample_picture`]; by default the picture is the whole input.

    Returns:
        `tuple`: class ids, int64 `(batch, height, width)`, those of `upsample(scores, size).argmax(dim=1)` (either of
        two classes whose scores differ only by rounding); and the share of that class in [0, 1], float32 of the same
        shape: its softmax probability, or its share of the sum of positive scores. It is `nan` where a score is `nan`.
    """
    total_of, add = (torch.sum, torch.add) if positive else (torch.logsumexp, torch.logaddexp)
    ids = best = total = None
    for start in range(0, scores.shape[1], CLASSES_AT_ONCE):
        part = upsample_picture(scores[:, start : start + CLASSES_AT_ONCE], size, frame, box)
        highest, index = part.max(dim=1)
        if best is None:
            ids, best, total = index, highest, total_of(part, dim=1)
        else:
            ids = torch.where(highest > best, index + start, ids)
            best, total = torch.maximum(best, highest), add(total, total_of(part, dim=1))
    return ids, best / total if positive else (best - total).exp()
