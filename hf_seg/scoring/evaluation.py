"""The scores of a data set, computed batch by batch in memory that does not grow with the number of pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EvalPrediction

from hf_seg.scoring.boundary import boundary_counts, boundary_distance, boundary_iou
from hf_seg.scoring.confusion import confusion_per_image, mean_of_present, region_scores
from hf_seg.scoring.metrics import SecondOpinion, SegMetric
from hf_seg.scoring.roc import roc_from_histograms, score_histograms
from hf_seg.scoring.upsampling import upsample


class Evaluation:
    """Adds up the scores of a set; if `thorough`, also ROC curves, boundary IoU and one confusion matrix per image."""

    def __init__(
        self,
        class_names: Sequence[str],
        ignore_index: int,
        *,
        thorough: bool = False,
        second_opinion: SecondOpinion | None = None,
    ):
        self.class_names, self.ignore_index, self.thorough = class_names, ignore_index, thorough
        self.second_opinion = second_opinion
        self.metric = SegMetric(num_labels=len(class_names), ignore_index=ignore_index)
        self.losses: list[tuple[Tensor, Tensor]] = []  # each batch's summed loss and labelled pixels, on its device
        self.histograms: Tensor | int = 0
        self.boundaries: Tensor | int = 0
        self.distance = 0
        self.per_image: list[Tensor] = []

    def reduce_logits(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Reduce logits `(batch, C, h, w)` on each rank, before they are gathered.

        Returns:
            `tuple`: predicted ids (uint8, the shape of `labels`) and each image's summed loss (float32 `(batch,)`); if
            thorough, also [`score_histograms`] and [`boundary_counts`].
        """
        logits = upsample(logits, labels.shape[-2:])
        loss = F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="none").sum(dim=(1, 2))
        ids = logits.argmax(dim=1)
        if not self.thorough:
            return ids.to(torch.uint8), loss
        self.distance = boundary_distance(*labels.shape[-2:])
        histograms = score_histograms(logits, labels, self.ignore_index)
        boundaries = boundary_counts(ids, labels, len(self.class_names), self.ignore_index, self.distance)
        return ids.to(torch.uint8), loss, histograms, boundaries

    def add_batch(self, batch: EvalPrediction) -> None:
        """Count a gathered batch. Trainer has already removed the samples that only fill up the last batch."""
        (predictions, loss, *thorough), labels = batch.predictions, batch.label_ids
        self.metric.add_batch(predictions=predictions, references=labels)
        # their values are read at the end, since reading them here would wait for the device at each batch
        self.losses.append((loss.sum(), (labels != self.ignore_index).sum()))
        if self.thorough:
            histograms, boundaries = (part.sum(dim=0, dtype=torch.int64) for part in thorough)
            self.histograms, self.boundaries = self.histograms + histograms, self.boundaries + boundaries
            classes = len(self.class_names), self.ignore_index
            self.per_image.append(confusion_per_image(predictions, labels, *classes).cpu())
        if self.second_opinion is not None:
            self.second_opinion.add_batch(predictions=predictions, references=labels)

    def compute(self) -> dict[str, Any]:
        """The scores of all batches.

        Returns:
            `dict`: `loss` (cross-entropy, whatever the training loss; mean over labelled pixels), the keys of
            [`SegMetric`] and [`region_scores`] (by class name, absent classes left out) and `confusion_matrix`. If
            thorough, also `boundary_iou` (`distance` in pixels, `mean` and `per_category`), `roc` (see
            [`roc_from_histograms`]) and `per_image` (the confusion matrix of each image in order, int32
            `(images, C, C)`). With a second opinion, also `cross_check`, see [`SecondOpinion.compare`].
        """
        confusion = self.metric.confusion.cpu().numpy()
        scores = self.metric.compute()
        # Exact over the data set. It replaces Trainer's own eval_loss, which is a mean of batch means.
        loss, pixels = (sum(map(float, values)) for values in zip(*self.losses, strict=True))
        record = {
            "loss": loss / pixels if pixels else float("nan"),
            **{
                key: by_class(self.class_names, value) if key.startswith("per_category") else value
                for key, value in (scores | region_scores(confusion)).items()
            },
            "confusion_matrix": confusion.tolist(),
        }
        if self.thorough:
            outlines = boundary_iou(self.boundaries)
            record |= {
                "boundary_iou": {
                    "distance": self.distance,
                    "mean": float(mean_of_present(outlines)),
                    "per_category": by_class(self.class_names, outlines),
                },
                "roc": roc_from_histograms(self.histograms.cpu().numpy(), self.class_names),
                "per_image": torch.cat(self.per_image).numpy(),
            }
        if self.second_opinion is not None:
            record["cross_check"] = self.second_opinion.compare(scores)
        return record


def by_class(class_names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Map class names to values, without absent classes (`nan`, which JSON cannot express)."""
    return {name: float(value) for name, value in zip(class_names, values, strict=True) if not np.isnan(value)}
