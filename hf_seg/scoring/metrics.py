"""The scores of `evaluate`'s `mean_iou`, computed batch by batch, and that metric itself as a check."""

from collections.abc import Callable, Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from hf_seg.scoring.confusion import confusion_matrix, scores_from_confusion


class SegMetric(evaluate.Metric):
    """Mean IoU of a whole data set as `evaluate`'s `mean_iou` defines it, in memory that does not grow with the set.

    Per class, intersection and union are summed over all pixels of all images whose reference is not `ignore_index`;
    IoU = intersection / union, accuracy = intersection / reference area, and the means leave out classes that are
    absent (0 / 0, `nan`). Only a matrix `(num_labels, num_labels)` is kept, on the device of the added tensors.

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
            references (the same form): class ids, or `ignore_index`.

        Raises:
            ValueError: when shapes or lengths differ, or an id is out of range.
        """
        if isinstance(predictions, (Tensor, np.ndarray)) and isinstance(references, (Tensor, np.ndarray)):
            maps = torch.as_tensor(predictions), torch.as_tensor(references)
            counts = confusion_matrix(*maps, self.num_labels, self.ignore_index)
            self.confusion = self.confusion.to(counts.device) + counts
        else:
            for prediction, reference in zip(predictions, references, strict=True):
                self.add(prediction=prediction, reference=reference)

    def add(self, *, prediction, reference) -> None:
        """Count one pair of `(height, width)` id maps; see [`~SegMetric.add_batch`]."""
        prediction, reference = (
            values if isinstance(values, Tensor) else np.asarray(values).astype(np.int64)
            for values in (prediction, reference)
        )
        self.add_batch(predictions=prediction, references=reference)

    def compute(self, *, predictions=None, references=None) -> dict[str, float | np.ndarray]:
        """Return [`scores_from_confusion`] of all pixels that were added, the arguments included, and start again."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = scores_from_confusion(self.confusion.cpu().numpy())
        self.reset()
        return scores


class SecondOpinion:
    """`evaluate`'s own `mean_iou`, computed on the same masks to check a [`SegMetric`].

    The result is for the record only: where the script cannot be loaded or fails, the record says why, and the run
    continues.

    Args:
        script (`str`, *optional*): path of a local copy of `mean_iou`, a file that ends in .py, which is executed.
            Without it there is no second opinion; nothing is downloaded.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, script: str | None = None):
        self.classes = {"num_labels": num_labels, "ignore_index": ignore_index}
        self.failure = "not asked for" if script is None else None
        self.metric = self._attempt("could not be loaded", lambda: evaluate.load(script))

    def _attempt(self, what: str, step: Callable[[], Any]) -> Any:
        """Return the result of a step of the script; None when this step or an earlier one has failed."""
        if self.failure is None:
            try:
                return step()
            except Exception as error:
                self.failure = f"mean_iou {what} ({type(error).__name__}: {error})"
        return None

    def add_batch(self, *, predictions: Tensor, references: Tensor) -> None:
        """Add a batch of class ids `(batch, height, width)`, at most 255."""

        def add() -> None:
            # its features are images, which are stored as PNG with 8 bits per pixel
            maps = (values.to(torch.uint8).cpu().numpy() for values in (predictions, references))
            self.metric.add_batch(predictions=next(maps), references=next(maps))

        self._attempt("failed", add)

    def compare(self, scores: dict[str, Any]) -> dict[str, Any]:
        """Return its `mean_iou` and the `largest_difference` from a [`SegMetric`]'s scores; or the `reason` for none.

        `available` says which of the two it is.
        """

        def compute() -> dict[str, Any]:
            theirs = self.metric.compute(**self.classes)
            difference = max(_difference(scores[key], theirs[key]) for key in scores)
            return {"available": True, "mean_iou": float(theirs["mean_iou"]), "largest_difference": difference}

        return self._attempt("failed", compute) or {"available": False, "reason": self.failure}


def _difference(ours: Any, theirs: Any) -> float:
    """The largest absolute difference; infinite where only one of the two has a value."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    neither = np.isnan(ours) & np.isnan(theirs)
    return float(np.nan_to_num(np.where(neither, 0, np.abs(ours - theirs)), nan=np.inf).max())
