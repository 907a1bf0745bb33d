"""Streaming scores: a confusion matrix that speaks `evaluate`'s `mean_iou`."""

from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

# Pixels that are counted at a time: their pairs, 4 bytes each, stay in a core's cache, and memory stays flat.
CHUNK = 2**18


def confusion_matrix(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of each (true class, predicted class) pair.

    Args:
        predictions (`torch.Tensor`, integer, any shape): predicted class ids in `[0, num_labels)`.
        references (`torch.Tensor`, integer, same shape): true class ids in `[0, num_labels)`, or `ignore_index`.
        num_labels (`int`): number of classes C.
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
    in_8_bits = num_labels <= 256 and 0 <= ignore_index < 256
    if not (in_8_bits and _fit_in_8_bits(references) and _fit_in_8_bits(predictions)):
        return _confusion_of_wide_ids(predictions, references, num_labels, ignore_index)
    pairs = _count_pairs(predictions.reshape(-1), references.reshape(-1))
    pairs[ignore_index] = 0
    # the ids are checked on 65,536 counts instead of on all pixels
    for name, counts in (("references", pairs.sum(dim=1)), ("predictions", pairs.sum(dim=0))):
        found = counts.nonzero()
        if len(found):
            _check_range(name, found[0], found[-1], num_labels, ignore_index)
    return pairs[:num_labels, :num_labels].clone()


def confusion_per_image(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int = 255) -> Tensor:
    """[`confusion_matrix`] of each image of a batch.

    Args:
        predictions (`torch.Tensor`, integer, of shape `(batch, height, width)`): class ids in `[0, num_labels)`.
        references (the same shape): class ids in `[0, num_labels)`, or `ignore_index`.
        num_labels (`int`), ignore_index (`int`): as there.

    Returns:
        `torch.IntTensor` of shape `(batch, C, C)`.
    """
    batch, size = len(references), num_labels**2
    image = torch.arange(batch, device=references.device)[:, None, None]
    keep = references != ignore_index
    pairs = (image * size + references.long() * num_labels + predictions.long())[keep]
    return torch.bincount(pairs, minlength=batch * size).reshape(batch, num_labels, num_labels).int()


def _fit_in_8_bits(ids: Tensor) -> bool:
    if ids.dtype == torch.uint8 or ids.numel() == 0:
        return True
    low, high = torch.aminmax(ids)
    return bool((low >= 0) & (high < 256))


def _count_pairs(predictions: Tensor, references: Tensor) -> Tensor:
    """Count the pairs of ids in [0, 255], whatever they mean: `(256, 256)`, a row per reference."""
    pairs = torch.zeros(256 * 256, dtype=torch.int64, device=references.device)
    for predicted, true in zip(predictions.split(CHUNK), references.split(CHUNK), strict=True):
        ids = true.to(torch.int32) * 256 + predicted.to(torch.int32)  # int32: half the memory to go through
        pairs += torch.bincount(ids, minlength=256 * 256)
    return pairs.reshape(256, 256)


def _confusion_of_wide_ids(predictions: Tensor, references: Tensor, num_labels: int, ignore_index: int) -> Tensor:
    """The same for ids of any width, and for those under ignored pixels that no class has."""
    keep = references != ignore_index
    true, predicted = references[keep].long(), predictions[keep].long()
    if true.numel() == 0:
        return torch.zeros(num_labels, num_labels, dtype=torch.int64, device=references.device)
    for name, ids in (("references", true), ("predictions", predicted)):
        _check_range(name, *torch.aminmax(ids), num_labels, ignore_index)
    pairs = torch.bincount(true * num_labels + predicted, minlength=num_labels**2)
    return pairs.reshape(num_labels, num_labels)


def _check_range(name: str, low: Tensor, high: Tensor, num_labels: int, ignore_index: int) -> None:
    if low < 0 or high >= num_labels:
        raise ValueError(
            f"{name} hold ids from {int(low)} to {int(high)}, but there are {num_labels} classes (0 to "
            f"{num_labels - 1}; {ignore_index} is ignored in references): map the mask values to class ids first"
        )


class SegMetric(evaluate.Metric):
    """Mean IoU of a whole set as `evaluate`'s `mean_iou` defines it, in memory that does not grow with the set.

    Per class, intersection and union are summed over all pixels of all images whose reference is not `ignore_index`;
    IoU = intersection / union, accuracy = intersection / reference area, and the means leave out classes that are
    absent (0 / 0, `nan`). Only a C×C int64 matrix is kept, on the device of the tensors that come in.

    Args:
        num_labels (`int`): number of classes C.
        ignore_index (`int`, *optional*, defaults to 255): reference value of the pixels that do not count.

    Source: the definition in `evaluate-metric/mean_iou`; Everingham et al., "The Pascal Visual Object Classes
    Challenge", IJCV 2010 (IoU summed over the set).
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, **kwargs):
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.reset()
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        id_map = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description="Mean IoU over a streaming confusion matrix.",
            citation="",
            inputs_description="predictions, references: integer id maps of shape (height, width), or batches.",
            features=datasets.Features({"predictions": id_map, "references": id_map}),
        )

    def reset(self) -> None:
        """Forget all pixels seen so far."""
        self.confusion = torch.zeros(self.num_labels, self.num_labels, dtype=torch.int64)

    def add_batch(self, *, predictions: Iterable, references: Iterable) -> None:
        """Count a batch.

        Args:
            predictions (integer tensor or array of shape `(batch, height, width)`, or a list of `(height, width)` maps
                of differing sizes): class ids in `[0, num_labels)`.
            references (the same form): class ids in `[0, num_labels)`, or `ignore_index`.

        Raises:
            ValueError: when shapes or lengths differ, or an id is out of range.
        """
        if not isinstance(predictions, (Tensor, np.ndarray)) or not isinstance(references, (Tensor, np.ndarray)):
            for prediction, reference in zip(predictions, references, strict=True):
                self.add(prediction=prediction, reference=reference)
            return
        counts = confusion_matrix(
            torch.as_tensor(predictions), torch.as_tensor(references), self.num_labels, self.ignore_index
        )
        self.confusion = self.confusion.to(counts.device) + counts

    def add(self, *, prediction, reference) -> None:
        """Count one pair of `(height, width)` id maps; see [`~SegMetric.add_batch`]."""
        prediction, reference = (
            values if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values).astype(np.int64))
            for values in (prediction, reference)
        )
        self.add_batch(predictions=prediction, references=reference)

    def compute(self, *, predictions=None, references=None) -> dict[str, float | np.ndarray]:
        """Score all that was added (and `predictions`, `references` if given), then start afresh.

        Returns:
            `dict`: `mean_iou`, `mean_accuracy`, `overall_accuracy` (floats in [0, 1]), `per_category_iou` and
            `per_category_accuracy` (float64 arrays of shape `(num_labels,)`, `nan` for absent classes).
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = scores_from_confusion(self.confusion.cpu().numpy())
        self.reset()
        return scores


def scores_from_confusion(confusion: np.ndarray) -> dict[str, float | np.ndarray]:
    """The keys of `mean_iou` from a `(C, C)` matrix with rows of true and columns of predicted classes."""
    intersection = np.diag(confusion).astype(np.float64)
    reference_area, predicted_area = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = intersection / (reference_area + predicted_area - intersection)
        accuracy = intersection / reference_area
        overall = intersection.sum() / reference_area.sum()
    return {
        "mean_iou": float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan"),
        "mean_accuracy": float(np.nanmean(accuracy)) if not np.isnan(accuracy).all() else float("nan"),
        "overall_accuracy": float(overall),
        "per_category_iou": iou,
        "per_category_accuracy": accuracy,
    }


class SecondOpinion:
    """`evaluate`'s own `mean_iou`, fed with the same masks, to check a [`SegMetric`] with.

    It is for the record: where it cannot be had or fails, the record says why, and the run it was to check goes on.

    Args:
        num_labels (`int`), ignore_index (`int`): as for [`SegMetric`].
        script (`str`, *optional*): path of a local copy of `mean_iou`, a file that ends in .py: it is run. Without it
            there is no second opinion; none is fetched.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, script: str | None = None):
        self.num_labels, self.ignore_index, self.failure = num_labels, ignore_index, None
        if script is None:
            self.failure = "not asked for"
            return
        try:
            self.metric = evaluate.load(script)
        except Exception as error:  # of the script itself
            self.failure = f"mean_iou could not be loaded ({type(error).__name__})"

    def add_batch(self, *, predictions: Tensor, references: Tensor) -> None:
        """Hand over a batch of `(batch, height, width)` class ids, at most 255."""
        if self.failure is None:
            try:
                # its features are images, which are stored as PNG: 8 bits each
                maps = (values.to(torch.uint8).cpu().numpy() for values in (predictions, references))
                self.metric.add_batch(predictions=next(maps), references=next(maps))
            except Exception as error:
                self.failure = f"mean_iou failed ({type(error).__name__}: {error})"

    def compare(self, scores: dict[str, Any]) -> dict[str, Any]:
        """Compare with the scores of a [`SegMetric`].

        Returns:
            `dict`: `available`, and with it `mean_iou` (the other one's) and `largest_difference` over all keys and
            classes; or the `reason` why it is not available.
        """
        if self.failure is None:
            try:
                theirs = self.metric.compute(num_labels=self.num_labels, ignore_index=self.ignore_index)
                pairs = [(np.asarray(scores[key], float), np.asarray(theirs[key], float)) for key in scores]
                if any((np.isnan(a) != np.isnan(b)).any() for a, b in pairs):
                    difference = float("inf")
                else:
                    difference = max(float(np.nan_to_num(np.abs(a - b)).max()) for a, b in pairs)
                return {
                    "available": True,
                    "mean_iou": float(theirs["mean_iou"]),
                    "largest_difference": difference,
                }
            except Exception as error:
                self.failure = f"mean_iou failed ({type(error).__name__}: {error})"
        return {"available": False, "reason": self.failure}
