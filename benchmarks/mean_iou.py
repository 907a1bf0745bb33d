"""`mean_iou` as `evaluate`'s script computes it, written from its definition: store all maps, count them one by one.

`evaluate` loads this file as it would load the real script, so it stores the maps itself, as encoded pictures with the
writer of `datasets`.
"""

import datasets
import evaluate
import numpy as np


class MeanIoU(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="mean IoU over all pixels of a set",
            citation="",
            inputs_description="predictions, references: integer id maps of shape (height, width)",
            features=datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()}),
        )

    def _compute(self, predictions, references, num_labels, ignore_index):
        intersection, predicted_area, reference_area = (np.zeros(num_labels) for _ in range(3))

        def areas(ids):
            return np.histogram(ids, bins=num_labels, range=(0, num_labels - 1))[0]

        for prediction, reference in zip(predictions, references, strict=True):
            prediction, reference = np.asarray(prediction), np.asarray(reference)
            counts = reference != ignore_index
            prediction, reference = prediction[counts], reference[counts]
            intersection += areas(prediction[prediction == reference])
            predicted_area += areas(prediction)
            reference_area += areas(reference)
        with np.errstate(divide="ignore", invalid="ignore"):
            iou = intersection / (predicted_area + reference_area - intersection)
            accuracy = intersection / reference_area
        return {
            "mean_iou": float(np.nanmean(iou)),
            "mean_accuracy": float(np.nanmean(accuracy)),
            "overall_accuracy": float(intersection.sum() / reference_area.sum()),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }
