"""ROC curves of a whole set from score histograms, in memory that does not grow with the set."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

# Class scores are binned by their log-odds: networks put most probabilities within 0.001 of 0 or 1, where bins of
# equal width in probability would hold nearly all pixels and flatten the curve.
ROC_BINS = 256
ROC_MAX_LOG_ODDS = 12.0


def score_histograms(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Histogram each class's softmax score, separately for the pixels of that class and for all others.

    Args:
        logits (of shape `(batch, C, height, width)`): at the size of `labels`.
        labels (integer, of shape `(batch, height, width)`): class ids, or `ignore_index`.

    Returns:
        `torch.IntTensor` of shape `(batch, C, 2, ROC_BINS)`: pixel counts; index 1 of the third axis holds the pixels
        of the class, 0 the others; bins run from the lowest to the highest log-odds.
    """
    batch, num_labels = logits.shape[:2]
    # a spare last bin takes the ignored pixels, so that no boolean indexing is needed; counting int32 is twice as fast
    row = ROC_BINS + 1
    ignored = labels == ignore_index
    image = torch.arange(batch, dtype=torch.int32, device=logits.device)[:, None, None]
    histograms = torch.empty(batch, num_labels, 2, ROC_BINS, dtype=torch.int32, device=logits.device)
    for class_id, probability in enumerate(logits.softmax(dim=1).unbind(dim=1)):
        log_odds = torch.logit(probability, eps=1e-7).clamp_(-ROC_MAX_LOG_ODDS, ROC_MAX_LOG_ODDS)
        bins = ((log_odds / ROC_MAX_LOG_ODDS + 1) * (ROC_BINS / 2)).int().clamp_(max=ROC_BINS - 1)
        index = (image * 2 + (labels == class_id)) * row + bins.masked_fill_(ignored, ROC_BINS)
        counts = torch.bincount(index.flatten(), minlength=batch * 2 * row)
        histograms[:, class_id] = counts.reshape(batch, 2, row)[..., :ROC_BINS]
    return histograms


def roc_from_histograms(histograms: np.ndarray, class_names: Iterable[str]) -> dict[str, dict]:
    """One-vs-rest ROC curves from summed score histograms.

    Args:
        histograms (integer array of shape `(C, 2, ROC_BINS)`): sums over images of [`score_histograms`].

    Returns:
        `dict`: class name → `{"fpr": list, "tpr": list, "auc": float}`, all in [0, 1], from high to low threshold. A
        class with no pixel, or with every pixel, has empty lists and `auc` None.

    Source: Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 2006.
    """
    curves = {}
    for name, (others, own) in zip(class_names, histograms.astype(np.int64), strict=True):
        if own.sum() == 0 or others.sum() == 0:
            curves[name] = {"fpr": [], "tpr": [], "auc": None}
            continue
        tpr = np.concatenate([[0], np.cumsum(own[::-1]) / own.sum()])
        fpr = np.concatenate([[0], np.cumsum(others[::-1]) / others.sum()])
        curves[name] = {"fpr": fpr.tolist(), "tpr": tpr.tolist(), "auc": float(np.trapezoid(tpr, fpr))}
    return curves


def stack_curves(curves: Mapping[str, Mapping]) -> dict[str, np.ndarray]:
    """Stack all `fpr` and all `tpr` as float32 arrays `(C, ROC_BINS + 1)`; NaN for a class without a curve."""
    nothing = [np.nan] * (ROC_BINS + 1)
    return {key: np.array([curve[key] or nothing for curve in curves.values()], np.float32) for key in ("fpr", "tpr")}
