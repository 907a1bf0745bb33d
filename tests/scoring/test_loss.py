"""The loss: one function for all models, whatever the parts that a batch is worked off in."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from hf_seg.scoring.loss import LossWatch, segmentation_loss


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
