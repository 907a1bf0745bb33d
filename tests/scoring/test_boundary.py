"""Boundary IoU against masks drawn by hand."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from hf_seg.scoring.boundary import boundary_counts, boundary_distance, boundary_iou


def square(size, top, left, side):
    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, top : top + side, left : left + side] = 1
    return mask


def test_width_of_a_boundary():
    assert [boundary_distance(*size) for size in ((64, 64), (8, 8), (1024, 2048))] == [2, 1, 46]


def test_a_square_and_itself():
    mask = square(12, 3, 3, 6)
    counts = boundary_counts(mask, mask, 3, 255, 1).sum(dim=0)
    # the rim of 6x6; outside, the ring around the square (8x8 less 6x6) and the image's edge (12x12 less 10x10)
    assert counts.tolist() == [[28 + 44, 28 + 44], [20, 20], [0, 0]]
    np.testing.assert_array_equal(boundary_iou(counts), [1, 1, np.nan])


def test_a_square_that_lies_a_pixel_aside():
    true, predicted = square(20, 4, 4, 8), square(20, 4, 5, 8)
    counts = boundary_counts(predicted, true, 2, 255, 1).sum(dim=0)
    # of two rims of 28 pixels, their upper and lower rows share 7 pixels each, and their sides nothing else
    assert counts[1].tolist() == [14, 28 + 28 - 14]
    # two pixels wide: rims of 48; rows 4, 5, 10 and 11 share 7 each, and in the four between, columns 5 and 11 lie in
    # both (rims of columns 4, 5, 10, 11 and of 5, 6, 11, 12)
    counts = boundary_counts(predicted, true, 2, 255, 2).sum(dim=0)
    assert counts[1].tolist() == [36, 48 + 48 - 36]


def test_what_is_inside_does_not_count():
    true = square(20, 4, 4, 10)
    hollow = true.clone()
    hollow[:, 8:10, 8:10] = 0  # a hole, whose rim is a boundary that the truth does not have
    counts = boundary_counts(hollow, true, 2, 255, 1).sum(dim=0)
    assert counts[1].tolist() == [36, 36 + 12]
    area = (true & hollow).sum() / (true | hollow).sum()
    assert boundary_iou(counts)[1] == pytest.approx(0.75) and area == pytest.approx(0.96)


def test_ignored_pixels():
    true, predicted = square(12, 3, 3, 6).long(), square(12, 3, 3, 6).long()
    true[:, :, 6:] = 255
    predicted[:, :, 9:] = 1  # wrong, where it does not count
    counts = boundary_counts(predicted, true, 2, 255, 1).sum(dim=0)
    assert torch.equal(counts[:, 0], counts[:, 1])
    assert counts[1].tolist() == [14, 14]  # what is left is 6x3, whose rim is all but 4 pixels
    nothing = boundary_counts(predicted, torch.full_like(true, 255), 2, 255, 1).sum(dim=0)
    assert nothing.sum() == 0 and np.isnan(boundary_iou(nothing)).all()


def test_batches_add_up():
    generator = torch.Generator().manual_seed(0)
    predictions, references = torch.randint(0, 4, (2, 5, 16, 16), generator=generator)
    whole = boundary_counts(predictions, references, 4, 255, 2)
    parts = [boundary_counts(predictions[i : i + 1], references[i : i + 1], 4, 255, 2) for i in range(5)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("distance", [1, 3])
def test_each_class_by_itself_as_the_paper_defines_it(distance):
    generator = torch.Generator().manual_seed(distance)
    blocks = torch.randint(0, 20, (2, 3, 6, 5), generator=generator)
    predictions, references = blocks.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    references[:, 7:9] = 255
    counts = boundary_counts(predictions, references, 21, 255, distance).sum(dim=0)
    square = np.ones((1, 2 * distance + 1, 2 * distance + 1), bool)
    for class_id in range(21):
        masks = (references == class_id).numpy(), ((predictions == class_id) & (references != 255)).numpy()
        true, predicted = (mask & ~ndimage.binary_erosion(mask, square) for mask in masks)
        assert counts[class_id].tolist() == [(true & predicted).sum(), (true | predicted).sum()]
