import json

import numpy as np
import pytest
import torch

from hf_seg.scoring.roc import roc_from_histograms, score_histograms


def exact_auc(scores, positive):
    order = np.argsort(scores)
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    n = positive.sum()
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * (~positive).sum())


def test_roc_matches_the_rank_statistic_and_ignores_void():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4, 32, 32), generator=generator)
    logits = 3 * torch.randn(4, 3, 32, 32, generator=generator)
    logits += 2 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    void = torch.rand(labels.shape, generator=generator) < 0.2
    marked = labels.masked_fill(void, 255)
    histograms = score_histograms(logits, marked)
    assert histograms.shape == (4, 3, 2, 256)
    assert int(histograms[:, 0].sum()) == int((~void).sum())
    curves = roc_from_histograms(histograms.sum(dim=0).numpy(), ["a", "b", "c"])
    probabilities = logits.softmax(dim=1)
    for class_id, name in enumerate("abc"):
        auc = exact_auc(probabilities[:, class_id][~void].numpy(), (labels[~void] == class_id).numpy())
        assert curves[name]["auc"] == pytest.approx(auc, abs=2e-3)
        assert curves[name]["fpr"][0] == curves[name]["tpr"][0] == 0
        assert curves[name]["fpr"][-1] == curves[name]["tpr"][-1] == 1
        assert (np.diff(curves[name]["tpr"]) >= 0).all()
    json.dumps(curves, allow_nan=False)


def test_roc_of_an_absent_class_is_none():
    logits = torch.randn(1, 2, 4, 4)
    curves = roc_from_histograms(score_histograms(logits, torch.zeros(1, 4, 4, dtype=torch.long))[0].numpy(), "ab")
    assert curves["a"]["auc"] is None and curves["b"] == {"fpr": [], "tpr": [], "auc": None}
