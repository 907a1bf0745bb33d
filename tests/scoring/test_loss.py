"""The losses: one class for all models, whatever the parts that a batch is worked off in."""

import math
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_seg.scoring.loss import LossWatch, SegLoss, balanced_weights, lovasz_loss

LOSSES = ("cross_entropy", "dice", "lovasz", "focal")


def loss_of(parts, logits, labels, counts=None, **options):
    return SegLoss(parts, **options)(SimpleNamespace(logits=logits), labels, counts)


def batch(seed=0, images=4, classes=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, 4, 4, generator=generator)
    labels = torch.randint(0, classes, (images, 16, 16), generator=generator)
    # ignored pixels, more of them in later images: the parts of a batch differ in weight
    ignored = torch.rand(labels.shape, generator=generator) < torch.linspace(0, 0.8, images)[:, None, None]
    return logits.requires_grad_(), labels.masked_fill(ignored, 255)


def test_loss_is_the_mean_over_labelled_pixels():
    logits, labels = batch()
    enlarged = F.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(enlarged, labels, ignore_index=255)
    torch.testing.assert_close(loss_of(None, logits, labels), expected)


# Two images of 2×2 pixels and two classes; the probability of class 1 at each pixel, and the labels.
PROBABILITIES = [[[0.2, 0.4], [0.6, 0.9]], [[0.5, 0.7], [0.3, 0.1]]]
LABELS = [[[0, 0], [1, 255]], [[0, 0], [255, 255]]]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # of the labelled pixels, the probabilities of their classes are .8, .6, .6, .5 and .3
        ({"cross_entropy": 1.0}, -(math.log(0.8) + 2 * math.log(0.6) + math.log(0.5) + math.log(0.3)) / 5),
        (
            {"focal": 1.0},
            -(0.2**2 * math.log(0.8) + 2 * 0.4**2 * math.log(0.6) + 0.5**2 * math.log(0.5) + 0.7**2 * math.log(0.3))
            / 5,
        ),
        # first image: class 0 shares .8 + .6, of a sum of .8 + .6 + .4 and an area of 2; class 1 shares .6, of 1.2
        # and 1. Second image: class 0 alone shares .5 + .3, of .8 and 2.
        ({"dice": 1.0}, (((1 - 2.8 / 3.8) + (1 - 1.2 / 2.2)) / 2 + (1 - 1.6 / 2.8)) / 2),
        # first image: errors of class 0 are .4 (not of it), .4 (of it), .2; those of class 1 .4 (of it), .4, .2.
        # One, two and three wrong pixels make 1 - IoU 1/3, 2/3 and 1, and 1, 1 and 1. Second: .7, .5; 1/2 and 1.
        ({"lovasz": 1.0}, ((0.4 / 3 + 0.4 / 3 + 0.2 / 3 + 0.4) / 2 + (0.7 + 0.5) / 2) / 2),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_two_by_two_pixels_by_hand(parts, expected):
    ones = torch.tensor(PROBABILITIES)
    logits, labels = torch.stack([1 - ones, ones], dim=1).log(), torch.tensor(LABELS)
    assert loss_of(parts, logits, labels).item() == pytest.approx(expected, rel=1e-6)
    # a third image without a labelled pixel counts nothing
    more = torch.cat([logits, logits[:1]]), torch.cat([labels, torch.full((1, 2, 2), 255)])
    assert loss_of(parts, *more).item() == pytest.approx(expected, rel=1e-6)


def test_lovasz_is_the_iou_of_hard_predictions_and_lies_on_the_convex_hull_between_them():
    true = torch.tensor([[True, True, False, False]])
    for wrong in ([], [0], [3], [0, 3], [0, 1], [2, 3]):
        predicted = true.clone()
        predicted[0, wrong] ^= True
        iou = (true & predicted).sum() / (true | predicted).sum()
        logits = torch.where(predicted[0], 50.0, -50.0)
        loss = loss_of({"lovasz": 1.0}, torch.stack([-logits, logits])[None, :, None], true.long()[:, None])
        others = (~true & ~predicted).sum() / (~true | ~predicted).sum()
        assert loss.item() == pytest.approx(1 - (iou + others).item() / 2, abs=1e-6)
    # the extension is the largest of the linear functions that the orders of the errors give
    errors, areas = torch.tensor([0.4, 0.1, 0.3, 0.2]), []
    for order in permutations(range(4)):
        chain = [set(order[:count]) for count in range(5)]
        value = [len(wrong) / (2 + len(wrong - {0, 1})) for wrong in chain]
        areas.append(sum(errors[pixel] * (value[i + 1] - value[i]) for i, pixel in enumerate(order)))
    ones = torch.where(true, 1 - errors, errors)
    assert lovasz_loss(ones, true).item() == pytest.approx(max(areas).item(), abs=1e-6)


WEIGHTED = {"class_weights": torch.tensor([0.5, 1, 0, 3, 7]), "label_smoothing": 0.1}


@pytest.mark.parametrize(
    ("parts", "options"),
    [*(({name: 1.0}, {}) for name in LOSSES), ({"cross_entropy": 1.0, "dice": 0.5, "focal": 2.0}, WEIGHTED)],
    ids=lambda value: "+".join(value),
)
def test_parts_of_a_batch_add_up_to_the_whole(parts, options):
    logits, labels = batch()
    labels[1] = 255  # an image that counts nothing
    whole = loss_of(parts, logits, labels, **options)
    counts = SegLoss(parts, **options).count(labels)
    shares = [loss_of(parts, logits[i : i + 1], labels[i : i + 1], counts, **options) for i in range(4)]
    torch.testing.assert_close(sum(shares), whole)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (sum(shares), whole)]
    torch.testing.assert_close(*gradients)
    assert gradients[0][0].abs().max() > 0 and gradients[0][1].abs().max() == 0


def test_class_weights_and_label_smoothing_are_those_of_torch():
    logits, labels = batch()
    logits = F.interpolate(logits, size=(16, 16))
    weights, smoothing = WEIGHTED.values()
    expected = F.cross_entropy(logits, labels, weights, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(None, logits, labels, **WEIGHTED), expected)
    focal = loss_of({"focal": 1.0}, logits, labels, class_weights=torch.full((5,), 4.0))
    torch.testing.assert_close(focal, loss_of({"focal": 1.0}, logits, labels))  # no weight of one class alone


def test_a_sum_of_losses():
    logits, labels = batch()
    single = {name: loss_of({name: 1.0}, logits, labels) for name in LOSSES}
    expected = single["cross_entropy"] + 0.5 * single["dice"] + 2 * single["lovasz"]
    torch.testing.assert_close(loss_of({"cross_entropy": 1, "dice": 0.5, "lovasz": 2}, logits, labels), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_labels_has_no_loss(name):
    logits, labels = batch()
    loss = loss_of({name: 1.0}, logits, torch.full_like(labels, 255))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0 and gradient.abs().max() == 0


def test_balanced_weights_make_classes_count_the_same_up_to_a_cap():
    weights = balanced_weights(np.array([600, 200, 100, 0, 4]))  # a mean of 226 for the four that occur
    assert weights == pytest.approx([226 / 600, 226 / 200, 226 / 100, 0, 10])


def test_losses_in_a_row_that_are_no_number():
    def first_bad(tolerated, *losses):
        watch = LossWatch(tolerated)
        for step, loss in enumerate(losses):
            watch.add(torch.tensor(loss), step)
        return watch.first_bad(wait=True)

    nan, inf = float("nan"), float("inf")
    assert first_bad(0, 1.0, inf, 2.0) == (inf, 1)
    assert first_bad(1, nan, 1.0, inf, 1.0) is None
    assert first_bad(1, 1.0, nan, inf, 1.0) == (inf, 2)
