"""The loss: one function for all models, whatever the parts that a batch is worked off in."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hf_seg.loss import dice_loss, segmentation_loss


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
    torch.testing.assert_close(segmentation_loss(SimpleNamespace(logits=logits), labels), expected)


def test_parts_of_a_batch_add_up_to_the_whole():
    logits, labels = batch()
    (whole,) = torch.autograd.grad(segmentation_loss(SimpleNamespace(logits=logits), labels), logits)
    count = (labels != 255).sum()
    parts = [segmentation_loss(SimpleNamespace(logits=logits[i : i + 1]), labels[i : i + 1], count) for i in range(4)]
    (summed,) = torch.autograd.grad(sum(parts), logits)
    torch.testing.assert_close(summed, whole)


def test_a_batch_without_labels_has_no_loss():
    logits, labels = batch()
    loss = segmentation_loss(SimpleNamespace(logits=logits), torch.full_like(labels, 255))
    assert loss.item() == 0


def test_dice_by_hand():
    # two classes, four pixels, the last of them ignored; class 1 is given (almost) all of every pixel
    logits = torch.tensor([[[[-20.0, -20, -20, -20]], [[20.0, 20, 20, 20]]]])
    labels = torch.tensor([[[1, 1, 0, 255]]])
    # class 0: nothing of its one pixel is found; class 1: 2·2 / (3 + 2)
    assert dice_loss(logits, labels).item() == pytest.approx(1 - (0 + 4 / 5) / 2)
    # a class that no label has does not count
    assert dice_loss(logits, torch.tensor([[[1, 1, 255, 255]]])).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(logits, torch.full_like(labels, 255)).item() == 0


def test_dice_of_uncertain_pixels():
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, 0.0]]]])  # one half each
    assert dice_loss(logits, torch.tensor([[[0, 1]]])).item() == pytest.approx(1 - 2 * 0.5 / (1 + 1))


def test_dice_weighs_a_rare_class_as_much_as_a_frequent_one():
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, 0, 0] = 1  # one pixel of a hundred
    logits = torch.zeros(1, 2, 10, 10, requires_grad=True)

    def pull(loss):  # of the rare class's pixel, in relation to one of the others
        (gradient,) = torch.autograd.grad(loss, logits)
        return (gradient[0, 1, 0, 0] / gradient[0, 0, 5, 5]).abs().item()

    assert pull(F.cross_entropy(logits, labels)) == pytest.approx(1)
    assert pull(dice_loss(logits, labels)) > 4


def test_the_weight_of_dice_and_the_share_of_a_part():
    logits, labels = batch()
    outputs = SimpleNamespace(logits=logits)
    enlarged = F.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False)
    plain, both = segmentation_loss(outputs, labels), segmentation_loss(outputs, labels, dice_weight=0.5)
    torch.testing.assert_close(both - plain, 0.5 * dice_loss(enlarged, labels))
    count = (labels != 255).sum()
    part = segmentation_loss(outputs, labels, 4 * count, dice_weight=0.5)  # a quarter of a larger batch
    torch.testing.assert_close(4 * part, both)
