import math

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from hf_seg.data import augment
from hf_seg.data.augment import STRONG_CROP_SCALE, crop_and_resize, draw_boxes, jitter_colors, rotate

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
KEPT = torch.tensor([False])


def images(count=3, size=(48, 60), seed=0):
    coarse = torch.rand(count, 3, 6, 7, generator=torch.Generator().manual_seed(seed))
    return F.resize(coarse, list(size), antialias=True).clamp(0, 1)


@pytest.mark.parametrize("size", [32, 48, 80])  # shrunk, partly as it is, enlarged
def test_the_whole_image_is_resized_as_by_torchvision(size):
    batch, labels = images(1), torch.randint(0, 9, (1, 48, 60), dtype=torch.uint8)
    ours, masks = crop_and_resize(batch, labels, WHOLE, KEPT, (size, size))
    torch.testing.assert_close(ours, F.resize(batch, [size, size], antialias=True), rtol=0, atol=2e-6)
    exact = torch.nn.functional.interpolate(labels[:, None].float(), (size, size), mode="nearest-exact")[:, 0]
    assert torch.equal(masks, exact.to(torch.uint8)) and masks.dtype == torch.uint8


def test_a_window_is_where_it_should_be():
    # grey levels are the coordinates of the pixels' centres, so each pixel of the result says where it comes from
    rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    ramp, labels = torch.stack([rows, columns, rows])[None].repeat(2, 1, 1, 1), rows.long()[None].repeat(2, 1, 1)
    boxes = torch.tensor([[0.125, 0.25, 0.75, 0.5]]).repeat(2, 1)
    windows, masks = crop_and_resize(ramp, labels, boxes, torch.tensor([False, True]), (48, 48))
    centers = torch.arange(48) + 0.5
    down, across = 12 + centers * 72 / 48, 24 + centers * 48 / 48
    torch.testing.assert_close(windows[0, 0], down[:, None].expand(48, 48), rtol=0, atol=0.05)
    torch.testing.assert_close(windows[0, 1], across.expand(48, 48), rtol=0, atol=0.05)
    torch.testing.assert_close(windows[1], windows[0].flip(-1))
    assert torch.equal(masks[0], down.long()[:, None].expand(48, 48)) and torch.equal(masks[1], masks[0])


@pytest.mark.parametrize("scale", [(0.5, 1.0), STRONG_CROP_SCALE])
def test_windows_are_inside_and_of_the_promised_sizes(scale):
    boxes = draw_boxes(20_000, torch.Generator().manual_seed(0), scale)
    assert boxes.min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-6
    area, ratio = boxes[:, 2] * boxes[:, 3], boxes[:, 3] / boxes[:, 2]
    assert area.min() >= scale[0] - 1e-5 and area.max() <= 1
    assert area.mean() == pytest.approx(sum(scale) / 2, abs=0.01)
    assert ratio.min() >= 3 / 4 - 1e-5 and ratio.max() <= 4 / 3 + 1e-5
    assert ratio.log().mean() == pytest.approx(0, abs=0.01)
    copy = 1.5 if scale[0] == 0.5 else 2  # times the size: the smallest side is hardly enlarged
    assert boxes[:, 2:].min() * copy > 0.86


def test_turned_as_by_torchvision():
    batch = images(size=(64, 64))
    labels = F.resize(torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4), [64, 64], F.InterpolationMode.NEAREST)
    turned, masks = rotate(batch, labels.repeat(3, 1, 1), torch.Generator().manual_seed(0))
    assert masks.dtype == torch.uint8 and masks.shape == (3, 64, 64)
    angles = (2 * torch.rand(3, generator=torch.Generator().manual_seed(0)) - 1) * 30
    assert angles.abs().max() > 10
    rows, columns = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    inside = rows**2 + columns**2 < 31**2  # where nothing comes in from beyond the edges
    for image, own, mask, angle in zip(batch, turned, masks, angles.tolist(), strict=True):
        expected = F.rotate(image, angle, F.InterpolationMode.BILINEAR)
        torch.testing.assert_close(own[:, inside], expected[:, inside], rtol=0, atol=1e-4)
        assert (mask == F.rotate(labels, angle)[0])[inside].float().mean() > 0.995
        assert own[:, ~inside].min() > 0  # mirrored, where torchvision's is black


@pytest.mark.parametrize(
    ("only", "adjust"),
    [("BRIGHTNESS", F.adjust_brightness), ("CONTRAST", F.adjust_contrast), ("SATURATION", F.adjust_saturation)],
)
def test_colours_change_as_by_torchvision(monkeypatch, only, adjust):
    limits = dict.fromkeys(("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"), 0) | {only: 0.4}
    for name, limit in limits.items():
        monkeypatch.setattr(augment, name, limit)
    batch = images() * 0.6 + 0.1  # nothing leaves [0, 1] on the way
    draws = 2 * torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) - 1
    column = ("BRIGHTNESS", "CONTRAST", "SATURATION").index(only)
    expected = [adjust(image, 1 + 0.4 * draw.item()) for image, draw in zip(batch, draws[:, column], strict=True)]
    ours = jitter_colors(batch, torch.Generator().manual_seed(1))
    # the weights of the grey have three digits, those of YIQ four
    torch.testing.assert_close(ours, torch.stack(expected), rtol=0, atol=1e-3)


def test_hue_turns_around_grey(monkeypatch):
    for name in ("BRIGHTNESS", "CONTRAST", "SATURATION"):
        monkeypatch.setattr(augment, name, 0)
    monkeypatch.setattr(augment, "HUE", 0.25)
    grey = torch.full((1, 3, 4, 4), 0.3)
    torch.testing.assert_close(jitter_colors(grey), grey, rtol=0, atol=1e-3)
    luma = torch.tensor(augment.LUMA)[:, None, None]
    batch = images() * 0.2 + 0.4
    turned = jitter_colors(batch)
    torch.testing.assert_close((turned * luma).sum(1), (batch * luma).sum(1), rtol=0, atol=1e-3)
    assert (turned - batch).abs().max() > 0.01
    # a quarter turn four times is a whole one
    quarter = augment._turn_hue(torch.tensor([math.pi / 2]), torch.ones(1, 1, 1))[0]
    torch.testing.assert_close(torch.linalg.matrix_power(quarter, 4), torch.eye(3), rtol=0, atol=1e-4)


def test_a_generator_decides():
    batch = images()
    first, again, other = (jitter_colors(batch, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0 <= first.min() and first.max() <= 1
