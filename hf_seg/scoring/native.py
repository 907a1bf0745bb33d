"""Scores at the photographs' own size, and the most that masks of a small size could reach there.

Training and its scores are at one small size. How much of what a score lacks is the model's, and how much is lost by
looking at so few pixels, only the masks at their own size can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from hf_seg.scoring.confusion import class_iou, confusion_matrix
from hf_seg.scoring.evaluation import by_class
from hf_seg.scoring.upsampling import upsampled_argmax

if TYPE_CHECKING:
    from hf_seg.data.transforms import SegTransform

BATCH = 32


def score_native(
    predict: Callable[[Tensor], Tensor], split: Dataset, prepared: Any, transform: SegTransform, sizes: Sequence[int]
) -> dict[str, Any]:
    """Score a model at each mask's own size.

    Args:
        predict: `pixel_values` `(batch, 3, image_size, image_size)` to logits `(batch, C, h, w)`, which are enlarged
            bilinearly to the mask's size.
        split: pairs as stored, of which the masks are read.
        prepared: the same pairs in the same order, prepared by `transform`, which does not augment.
        sizes: sides, in pixels, to find ceilings for.

    Returns:
        `dict`: `mean_iou`, `per_category_iou` by class name, and `ceilings`, by size as text: the mIoU of the true
        masks themselves after [`shrink_and_back`]. A model that puts out logits of that size may come out above, since
        logits are enlarged smoothly.
    """
    spec, masks = transform.spec, split.select_columns(["mask"])
    scored = torch.zeros(spec.num_labels, spec.num_labels, dtype=torch.int64)
    ceilings = {size: torch.zeros(spec.num_labels + 1, spec.num_labels + 1, dtype=torch.int64) for size in sizes}
    for start in range(0, len(split), BATCH):
        indices = list(range(start, min(start + BATCH, len(split))))
        logits = predict(transform.finish(prepared.__getitems__(indices))["pixel_values"])
        for index, of_image in zip(indices, logits, strict=True):
            labels = torch.from_numpy(transform.class_ids(masks[index]["mask"]))
            ids, _ = upsampled_argmax(of_image[None], tuple(labels.shape))
            scored += confusion_matrix(ids[0].cpu(), labels, spec.num_labels, spec.ignore_index)
            for size, counts in ceilings.items():
                small = shrink_and_back(labels, size)
                # what has no label in the small mask is a class of its own there, and never right
                small = small.masked_fill(small == spec.ignore_index, spec.num_labels)
                counts += confusion_matrix(small, labels, spec.num_labels + 1, spec.ignore_index)
    iou = class_iou(scored.numpy())
    return {
        "mean_iou": float(np.nanmean(iou)),
        "per_category_iou": by_class(spec.class_names, iou),
        "ceilings": {str(size): ceiling(counts.numpy()) for size, counts in ceilings.items()},
    }


def shrink_and_back(labels: Tensor, size: int) -> Tensor:
    """A mask `(height, width)` after it was shrunk to `size`×`size` and enlarged again, each time by the nearest."""
    small = F.interpolate(labels[None, None].float(), size=(size, size), mode="nearest-exact")
    return F.interpolate(small, size=tuple(labels.shape), mode="nearest-exact")[0, 0].to(labels.dtype)


def ceiling(counts: np.ndarray) -> float:
    """The mIoU from a confusion matrix whose last class stands for pixels without a label in the prediction."""
    return float(np.nanmean(class_iou(counts)[:-1]))
