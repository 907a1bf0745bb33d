"""Scores at the masks' own size, and ceilings, against masks drawn by hand."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.data.transforms import SegTransform
from hf_seg.scoring.native import ceiling, score_native, shrink_and_back

SPEC = DatasetSpec(
    name="squares",
    class_names=("ground", "square"),
    palette=((0, 0, 0), (255, 0, 0)),
    label_table=build_label_table({0: 0, 1: 1, 9: 255}),
)


class Prepared:
    """What `prepare_splits` gives: whole batches by a list of indices."""

    def __init__(self, split, transform):
        self.split, self.transform = split, transform

    def __getitems__(self, indices):
        return self.transform.prepare(self.split[indices])


def build(masks):
    images = [PILImage.fromarray(np.repeat(mask[..., None] % 9 * 200, 3, axis=2).astype(np.uint8)) for mask in masks]
    pictures = [PILImage.fromarray(mask.astype(np.uint8)) for mask in masks]
    split = Dataset.from_dict({"image": images, "mask": pictures}, Features({"image": Image(), "mask": Image()}))
    transform = SegTransform(size=(32, 32), spec=SPEC)
    return split, Prepared(split, transform), transform


def brightness(pixel_values):
    """A model that takes what is bright for a square."""
    bright = pixel_values[:, :1]
    return torch.cat([0.5 - bright, bright - 0.5], dim=1)


def test_shrinking_takes_the_pixel_in_the_middle():
    labels = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]], dtype=torch.uint8)
    assert torch.equal(shrink_and_back(labels, (4, 4)), labels)
    # the middle of two pixels is on the line between them, and belongs to the second
    assert shrink_and_back(labels, (2, 2)).tolist() == [[5, 5, 7, 7], [5, 5, 7, 7], [13, 13, 15, 15], [13, 13, 15, 15]]
    assert shrink_and_back(labels[:, :3], (1, 1)).tolist() == [[9] * 3] * 4


def test_ceilings_of_a_square():
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1  # lies on the grid of 32, 16 and 8 pixels: nothing is lost
    odd = np.zeros((64, 64), np.uint8)
    odd[20:44, 20:44] = 1  # on a grid of 4 pixels; of 8 pixels, the lines at 20 and 44 are in the middle
    split, prepared, transform = build([mask, mask])
    scores = score_native(brightness, split, prepared, transform, sizes=((32, 32), (8, 8)))
    assert scores["ceilings"] == {"32": 1.0, "8": 1.0}
    split, prepared, transform = build([odd])
    scores = score_native(brightness, split, prepared, transform, sizes=((16, 16), (8, 8)))
    # the sampled pixels, 4, 12, 20 …, make of 20:44 the cells 16:40 in both directions
    both = 20 * 20
    square, ground = both / (2 * 24 * 24 - both), (4096 - 2 * 576 + both) / (4096 - both)
    assert scores["ceilings"] == {"16": 1.0, "8": pytest.approx((square + ground) / 2)}


def test_the_model_is_scored_at_the_masks_size():
    masks = [np.zeros((64, 96), np.uint8), np.zeros((48, 40), np.uint8)]
    masks[0][16:48, 24:72] = 1
    masks[1][:, 20:] = 1
    masks[1][:6] = 9  # ignored
    split, prepared, transform = build(masks)
    scores = score_native(brightness, split, prepared, transform, sizes=((32, 32),))
    assert 0.95 < scores["mean_iou"] < 1  # edges are off by less than a pixel of 32
    assert scores["mean_iou"] == pytest.approx(np.mean([*scores["per_category_iou"].values()]))

    def wrong(pixel_values):
        return -brightness(pixel_values)

    assert score_native(wrong, split, prepared, transform, sizes=())["mean_iou"] < 0.02


def test_a_small_mask_without_a_label_is_wrong_there():
    # 4 pixels of class 0, all of which the small mask leaves without a label, and 12 of class 1 that are right
    counts = np.array([[0, 0, 4], [0, 12, 0], [0, 0, 0]])
    assert ceiling(counts) == pytest.approx((0 + 1) / 2)
