"""The classes of enlarged maps, a few classes at a time."""

import pytest
import torch

from hf_seg.scoring import upsampling
from hf_seg.scoring.upsampling import upsample, upsampled_argmax


@pytest.mark.parametrize("classes", [1, 3, 8, 9, 150])
@pytest.mark.parametrize("positive", [False, True])
def test_classes_and_shares_are_those_of_all_classes_at_once(classes, positive):
    scores = torch.randn(2, classes, 5, 4, generator=torch.Generator().manual_seed(classes)) * 3
    scores = scores.abs() if positive else scores
    whole = upsample(scores, (33, 47))
    expected = whole / whole.sum(dim=1, keepdim=True) if positive else whole.softmax(dim=1)
    ids, shares = upsampled_argmax(scores, (33, 47), positive)
    assert torch.equal(ids, whole.argmax(dim=1))
    torch.testing.assert_close(shares, expected.amax(dim=1))


def test_a_score_that_is_no_number_shows_in_the_share():
    scores = torch.zeros(1, 20, 2, 2)
    scores[0, 13, 1, 1] = torch.nan
    _, shares = upsampled_argmax(scores, (2, 2))
    assert shares.isnan().tolist() == [[[False, False], [False, True]]]


def test_memory_does_not_grow_with_the_classes(monkeypatch):
    largest = []
    monkeypatch.setattr(
        upsampling, "upsample", lambda part, size: largest.append(part.shape[1]) or upsample(part, size)
    )
    upsampled_argmax(torch.zeros(1, 150, 4, 4), (8, 8))
    assert max(largest) == upsampling.CLASSES_AT_ONCE and sum(largest) == 150


def test_scores_of_that_size_are_not_resized():
    scores = torch.randn(2, 3, 5, 4)
    assert upsample(scores, (5, 4)) is scores
    resized = torch.nn.functional.interpolate(scores, size=(5, 4), mode="bilinear", align_corners=False)
    assert torch.equal(scores, resized)
