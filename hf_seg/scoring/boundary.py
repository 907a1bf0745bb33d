"""Boundary IoU: how well predicted outlines lie on the true ones, which a mean over areas hardly shows."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def boundary_distance(height: int, width: int) -> int:
    """How many pixels wide a boundary is: 2 % of the diagonal, as in the paper, and at least one."""
    return max(1, round(0.02 * math.hypot(height, width)))


def boundary_counts(
    predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int, distance: int
) -> Tensor:
    """Count, for each class, the boundary pixels that prediction and truth share, and those that either has.

    The boundary of a class are its pixels from which another class, an ignored pixel or the image's edge is at most
    `distance` pixels away (in the larger of the two directions), at least one.

    Args:
        predictions (integer, of shape `(batch, height, width)`): class ids in `[0, num_labels)`.
        references (the same shape): class ids, or `ignore_index`: taken out of the prediction, too.

    Returns:
        `torch.LongTensor` of shape `(batch, C, 2)`: intersection and union, in pixels.

    Source: Cheng, Girshick, Dollár, Berg and Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation
    Evaluation", CVPR 2021; there for single objects, here for the pixels of a class.
    """
    ignored = references == ignore_index
    true, predicted = (labels.masked_fill(ignored, num_labels) for labels in (references, predictions))
    of_true, of_predicted = _on_boundary(true, distance), _on_boundary(predicted, distance)

    batch, number = len(true), torch.arange(len(true), device=true.device)[:, None, None] * (num_labels + 1)

    def count(labels: Tensor, where: Tensor) -> Tensor:
        counts = torch.bincount((labels + number)[where], minlength=batch * (num_labels + 1))
        return counts.unflatten(0, (batch, num_labels + 1))[:, :num_labels]

    shared = count(true, of_true & of_predicted & (true == predicted))
    return torch.stack([shared, count(true, of_true) + count(predicted, of_predicted) - shared], dim=2)


def _on_boundary(labels: Tensor, distance: int) -> Tensor:
    """The pixels whose square neighbourhood holds another label; beyond the image all is another."""
    padded, side = F.pad(labels.float(), [distance] * 4, value=-1.0), 2 * distance + 1
    return (F.max_pool2d(padded, side, stride=1) != labels) | (-F.max_pool2d(-padded, side, stride=1) != labels)


def boundary_iou(counts: Tensor) -> np.ndarray:
    """Summed [`boundary_counts`] to a float64 array of shape `(C,)`: IoU in [0, 1], `nan` for absent classes."""
    intersection, union = counts.cpu().numpy().astype(np.float64).T
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)
