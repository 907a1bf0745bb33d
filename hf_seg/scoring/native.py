"""Scores at the photographs' own size, and the highest scores that masks of a small size could reach there.

Training and its scores use one small size. Only the masks at their own size tell how much of the error comes from the
model, and how much from the small size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils.memory import should_reduce_batch_size
from datasets import Dataset
from torch import Tensor

from hf_seg.scoring.confusion import class_iou, confusion_matrix, mean_iou, mean_of_present
from hf_seg.scoring.evaluation import by_class
from hf_seg.scoring.upsampling import upsampled_argmax

if TYPE_CHECKING:
    from hf_seg.data.geometry import Size
    from hf_seg.data.transforms import SegTransform

COMPARED = 100  # number of test pictures that are also segmented as transformers' `pipeline` does it


def score_native(
    predict: Callable[[Tensor], Tensor],
    split: Dataset,
    prepared: Any,
    transform: SegTransform,
    sizes: Sequence[Size],
    batch: int = 32,
) -> dict[str, Any]:
    """Score a model at each mask's own size.

    Args:
        predict: maps `pixel_values` `(batch, 3, *size)` to logits `(batch, C, h, w)`, which are enlarged bilinearly to
            the mask's size, as [`hf_seg.inference.predict`] does.
        split: pairs as stored; only their masks are read.
        prepared: the same pairs in the same order, prepared by `transform`, which does not augment.
        sizes: (height, width) in pixels, for each of which a ceiling is computed.
        batch: number of pictures that are predicted at a time.

    Returns:
        `dict`: `mean_iou`, `per_category_iou` by class name, `per_image` (int64 `(images, C, C)`, the confusion matrix
        of each image) and `ceilings`. These map each size as text (`"64"`, or `"96x64"`, width first) to the mIoU of
        the true masks themselves after [`shrink_and_back`]. A model whose logits have that size may score higher than
        the ceiling, since logits are enlarged smoothly.
    """
    spec, masks = transform.spec, split.select_columns(["mask"])
    scored = []
    ceilings = {size: torch.zeros(spec.num_labels + 1, spec.num_labels + 1, dtype=torch.int64) for size in sizes}
    for start in range(0, len(split), batch):
        indices = list(range(start, min(start + batch, len(split))))
        logits = predict(transform.finish(prepared.__getitems__(indices))["pixel_values"])
        for index, of_image in zip(indices, logits, strict=True):
            labels = torch.from_numpy(transform.class_ids(masks[index]["mask"]))
            box = transform.box(picture := tuple(labels.shape))
            ids, _ = upsampled_argmax(of_image[None], picture, frame=transform.size, box=box)
            scored.append(confusion_matrix(ids[0].cpu(), labels, spec.num_labels, spec.ignore_index))
            for size, counts in ceilings.items():
                small = shrink_and_back(labels, transform.fitted(picture, size))
                # a pixel without a label in the small mask gets an extra class, which is never right
                small = small.masked_fill(small == spec.ignore_index, spec.num_labels)
                counts += confusion_matrix(small, labels, spec.num_labels + 1, spec.ignore_index)
    per_image = torch.stack(scored).numpy()
    confusion = per_image.sum(axis=0)
    return {
        "per_image": per_image,
        "mean_iou": float(mean_iou(confusion)),
        "per_category_iou": by_class(spec.class_names, class_iou(confusion)),
        "ceilings": {
            str(size[0]) if size[0] == size[1] else f"{size[1]}x{size[0]}": ceiling(counts.numpy())
            for size, counts in ceilings.items()
        },
    }


def compare_pipeline(
    predict: Callable[[Tensor], Tensor],
    per_image: np.ndarray,
    split: Dataset,
    prepared: Any,
    transform: SegTransform,
) -> dict[str, Any]:
    """Compare hf_seg's prediction with that of `pipeline("image-segmentation")`, which cannot prepare pictures as in
    training: it leaves out the padding of a `"letterbox"` run, and passes the pictures of a `"crop"` run whole.

    Args:
        predict, split, prepared, transform: as in [`score_native`].
        per_image: hf_seg's own confusion matrices of the pictures at their own size, `(images, C, C)`.

    Returns:
        `dict`: `pictures`, the number of pictures compared, which are the first of the split, at most `COMPARED`; and
        `mean_iou` and `pipeline_mean_iou` on these pictures, at their own size. The latter is None where the model
        fails on a picture without padding, as a SegFormer does below 32 pixels.
    """
    spec, count, confusion = transform.spec, min(COMPARED, len(split)), 0
    own = float(mean_iou(per_image[:count].sum(axis=0)))
    for index in range(count):
        pixel_values = transform.finish(prepared.__getitems__([index]))["pixel_values"]
        labels = torch.from_numpy(transform.class_ids(split[index]["mask"]))
        top, left, bottom, right = transform.box(picture := tuple(labels.shape)) or (0, 0, *pixel_values.shape[-2:])
        try:
            ids, _ = upsampled_argmax(predict(pixel_values[..., top:bottom, left:right]), picture)
        except RuntimeError as error:
            if should_reduce_batch_size(error):
                raise
            return {"pictures": count, "mean_iou": own, "pipeline_mean_iou": None}
        confusion += confusion_matrix(ids[0].cpu(), labels, spec.num_labels, spec.ignore_index)
    return {"pictures": count, "mean_iou": own, "pipeline_mean_iou": float(mean_iou(confusion.numpy()))}


def shrink_and_back(labels: Tensor, size: Size) -> Tensor:
    """Shrink a mask `(height, width)` to `size` and enlarge it again, both by nearest neighbour."""
    small = F.interpolate(labels[None, None].float(), size=tuple(max(1, side) for side in size), mode="nearest-exact")
    return F.interpolate(small, size=tuple(labels.shape), mode="nearest-exact")[0, 0].to(labels.dtype)


def ceiling(counts: np.ndarray) -> float:
    """The mIoU from a matrix `(C + 1, C + 1)` whose last class stands for pixels without a label in the prediction."""
    return float(mean_of_present(class_iou(counts)[:-1]))
