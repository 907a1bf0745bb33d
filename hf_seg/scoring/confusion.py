"""Confusion matrices, and the scores that follow from them."""

import numpy as np
import torch
from torch import Tensor

# Pixels counted at a time: their pairs, 4 bytes each, fit into a core's cache, and memory use stays constant.
CHUNK = 2**18


def confusion_matrix(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of each (true class, predicted class) pair.

    Args:
        predictions (`torch.Tensor`, integer, any shape): class ids in `[0, num_labels)`.
        references (`torch.Tensor`, integer, same shape): class ids in `[0, num_labels)`, or `ignore_index`.
        ignore_index (`int`): pixels with this *reference* are left out, whatever was predicted there.

    Returns:
        `torch.LongTensor` of shape `(C, C)` on the device of `references`; rows are true classes, columns predicted.

    Raises:
        ValueError: when the shapes differ, or an id lies outside `[0, num_labels)`.
    """
    if predictions.shape != references.shape:
        raise ValueError(
            f"predictions have shape {tuple(predictions.shape)} and references {tuple(references.shape)}: "
            "resize the predictions to the size of the reference masks first"
        )
    if not (num_labels <= 256 and 0 <= ignore_index < 256 and _fit_in_8_bits(references, predictions)):
        keep = references != ignore_index
        for name, ids in (("references", references[keep]), ("predictions", predictions[keep])):
            if len(ids):
                _check_range(name, *torch.aminmax(ids), num_labels, ignore_index)
        maps = (values.reshape(1, 1, -1) for values in (predictions, references))
        return confusion_per_image(*maps, num_labels, ignore_index)[0].long()
    pairs = torch.zeros(256 * 256, dtype=torch.int64, device=references.device)
    chunks = zip(predictions.reshape(-1).split(CHUNK), references.reshape(-1).split(CHUNK), strict=True)
    for predicted, true in chunks:
        ids = true.to(torch.int32) * 256 + predicted.to(torch.int32)  # int32: half the memory of int64 to read
        pairs += torch.bincount(ids, minlength=256 * 256)
    pairs = pairs.reshape(256, 256)
    pairs[ignore_index] = 0
    # check the ids on 65,536 counts instead of all pixels
    for name, counts in (("references", pairs.sum(dim=1)), ("predictions", pairs.sum(dim=0))):
        found = counts.nonzero()
        if len(found):
            _check_range(name, found[0], found[-1], num_labels, ignore_index)
    return pairs[:num_labels, :num_labels].clone()


def confusion_per_image(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """The [`confusion_matrix`] of each image of a batch `(batch, height, width)`: int32 of shape `(batch, C, C)`.

    The ids are not checked.
    """
    batch, size = len(references), num_labels**2
    image = torch.arange(batch, device=references.device)[:, None, None]
    keep = references != ignore_index
    pairs = (image * size + references.long() * num_labels + predictions.long())[keep]
    return torch.bincount(pairs, minlength=batch * size).reshape(batch, num_labels, num_labels).int()


def _fit_in_8_bits(*maps: Tensor) -> bool:
    wide = [torch.aminmax(ids) for ids in maps if ids.dtype != torch.uint8 and ids.numel()]
    return all(low >= 0 and high < 256 for low, high in wide)


def _check_range(name: str, low: Tensor, high: Tensor, num_labels: int, ignore_index: int) -> None:
    if low < 0 or high >= num_labels:
        raise ValueError(
            f"{name} hold ids from {int(low)} to {int(high)}, but there are {num_labels} classes (0 to "
            f"{num_labels - 1}; {ignore_index} is ignored in references): map the mask values to class ids first"
        )


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, float64 `(..., C)`, from confusion matrices `(..., C, C)`; NaN for absent classes."""
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return intersection / (confusion.sum(axis=-1) + confusion.sum(axis=-2) - intersection)


def mean_iou(confusion: np.ndarray) -> np.ndarray:
    """Mean IoU of the classes that occur, `(...)`, from confusion matrices `(..., C, C)`; NaN where none occurs."""
    return mean_of_present(class_iou(confusion))


def mean_of_present(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of the values that are not NaN; NaN where all values are NaN."""
    present = ~np.isnan(values)
    with np.errstate(invalid="ignore"):  # 0 / 0, where all values are NaN
        return np.where(present, values, 0).sum(axis=-1) / present.sum(axis=-1)


def region_scores(confusion: np.ndarray) -> dict[str, float | np.ndarray]:
    """Compute the scores that `evaluate`'s `mean_iou` lacks, from a matrix `(C, C)` whose rows are true classes.

    Means are floats in [0, 1] over the classes that occur. Scores per category are float64 arrays `(C,)`. A class that
    occurs in neither truth nor prediction is NaN. A class that occurs but is never predicted has a precision of 0.
    (Recall, the share of a class's pixels that are found, is what `mean_iou` calls accuracy.)

    - Dice, or F1: 2·TP / (2·TP + FP + FN), which is the harmonic mean of precision and recall.
    - Frequency-weighted IoU: the IoU averaged over the classes, each weighted by its share of the true pixels. Source:
      Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
    """
    right, true, predicted = np.diag(confusion).astype(np.float64), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        dice = 2 * right / (true + predicted)
        weighted = np.nansum(true * class_iou(confusion)) / true.sum()
        precision = np.where(np.isnan(dice), np.nan, right / np.maximum(predicted, 1))
    return {
        "mean_dice": float(mean_of_present(dice)),
        "mean_precision": float(mean_of_present(precision)),
        "frequency_weighted_iou": float(weighted),
        "per_category_dice": dice,
        "per_category_precision": precision,
    }


def scores_from_confusion(confusion: np.ndarray) -> dict[str, float | np.ndarray]:
    """Compute the scores of `evaluate`'s `mean_iou`, by its keys, from a matrix `(C, C)` whose rows are true classes.

    Means and `overall_accuracy` are floats in [0, 1]. Scores per category are float64 arrays `(C,)`, NaN for classes
    that do not occur (for the accuracy: that do not occur in the truth).
    """
    right, area = np.diag(confusion).astype(np.float64), confusion.sum(axis=1)
    with np.errstate(invalid="ignore"):
        accuracy, overall = right / area, right.sum() / area.sum()
    return {
        "mean_iou": float(mean_iou(confusion)),
        "mean_accuracy": float(mean_of_present(accuracy)),
        "overall_accuracy": float(overall),
        "per_category_iou": class_iou(confusion),
        "per_category_accuracy": accuracy,
    }
