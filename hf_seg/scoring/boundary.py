"""Boundary IoU: how well predicted outlines match the true ones, which IoU over areas hardly shows."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def boundary_distance(height: int, width: int) -> int:
    """The width of a boundary in pixels: 2 % of the image's diagonal, as in the paper, and at least one."""
    return max(1, round(0.02 * math.hypot(height, width)))


def boundary_counts(
    predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int, distance: int
) -> Tensor:
    """Count the boundary pixels of each class: those that prediction and truth share, and those that either has.

    A pixel is on the boundary of its class when the square of side 2 · `distance` + 1 around it holds another class,
    an ignored pixel or a position outside the image.

    Args:
        predictions (integer, of shape `(batch, height, width)`): class ids in `[0, num_labels)`.
        references (the same shape): class ids, or `ignore_index`, which is left out of the prediction too.
        distance (`int`): in pixels, at least 1; see [`boundary_distance`].

    Returns:
        `torch.LongTensor` of shape `(batch, C, 2)`: intersection and union, in pixels.

    Source: Cheng, Girshick, Dollár, Berg and Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation
    Evaluation", CVPR 2021. The paper scores single objects; here it is all pixels of a class.
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
    """Mark the pixels whose square neighbourhood holds another label; outside the image counts as another label."""
    padded, side = F.pad(labels.float(), [distance] * 4, value=-1.0), 2 * distance + 1

    def largest(values: Tensor) -> Tensor:  # the columns first: the time then grows with the distance, not its square
        return F.max_pool2d(F.max_pool2d(values, (side, 1), stride=1), (1, side), stride=1)

    return (largest(padded) != labels) | (-largest(-padded) != labels)


def boundary_iou(counts: Tensor) -> np.ndarray:
    """IoU in [0, 1], float64 of shape `(C,)`, from summed [`boundary_counts`] `(C, 2)`; `nan` for absent classes."""
    intersection, union = counts.cpu().numpy().astype(np.float64).T
    return np.divide(intersection, union, out=np.full(len(union), np.nan), where=union > 0)
