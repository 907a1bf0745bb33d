"""Pictures of known geometry through every `data.resize`: training, prediction and its inverse agree."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BeitImageProcessor, MobileViTImageProcessor

from hf_seg.data.geometry import Framing, blend, centered, cut, fitted_size, pad, slide, strongest, windows
from hf_seg.data.spec import DatasetSpec, build_label_table
from hf_seg.data.transforms import SegTransform
from hf_seg.models.build import build_image_processor
from hf_seg.scoring.upsampling import upsampled_argmax

SPEC = DatasetSpec(
    name="lines",
    class_names=("ground", "line"),
    palette=((0, 0, 0), (255, 255, 255)),
    label_table=build_label_table({0: 0, 1: 1}),
)
EVERY = pytest.mark.parametrize("resize", ["stretch", "letterbox", "crop"])


def lines(size, width=1):
    """A mask `(height, width)` with its corners, a row and a column marked."""
    mask = np.zeros(size, np.uint8)
    corner = max(2, width)
    for rows in (slice(0, corner), slice(-corner, None)):
        for columns in (slice(0, corner), slice(-corner, None)):
            mask[rows, columns] = 1
    mask[size[0] // 3 : size[0] // 3 + width] = 1
    mask[:, size[1] // 4 : size[1] // 4 + width] = 1
    return mask


def picture_of(mask):
    return Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2).astype(np.uint8))


def brightness(pixel_values):
    """Logits of a model that takes for a line what is bright, at the input's own size."""
    bright = pixel_values.mean(dim=1, keepdim=True)
    return torch.cat([0.5 - bright, bright - 0.5], dim=1)


@EVERY
@pytest.mark.parametrize("normalize", ["none", "imagenet"])
@pytest.mark.parametrize("size", [(90, 70), (64, 40), (480, 360), (96, 64)])
def test_prediction_sees_what_training_saw(resize, normalize, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
    image = image.resize(size, Image.Resampling.BICUBIC)
    transform = SegTransform(size=(64, 96), spec=SPEC, resize=resize, normalize=normalize)
    seen = transform({"image": [image], "mask": [Image.new("L", size)]})["pixel_values"][0]
    processor = build_image_processor(size=(64, 96), normalize=normalize, resize=resize)
    framing = Framing.of(processor)
    prepared = framing.prepare(processor, image)
    if resize == "crop":  # training pads only windows
        seen = pad(seen, framing.frame((image.height, image.width)), framing.black)
    assert prepared.shape == seen.shape and (resize == "crop" or seen.shape == (3, 64, 96))
    torch.testing.assert_close(prepared, seen, rtol=0, atol=1e-5)


def test_a_centre_crop_is_left_out():
    mask = lines((96, 180), width=12)
    processor = MobileViTImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 48, "width": 48}, do_flip_channel_order=False
    )
    framing = Framing.of(processor)
    pixel_values = framing.prepare(processor, picture_of(mask))
    assert pixel_values.shape == (3, 64, 120)
    ids, _ = upsampled_argmax(
        brightness(pixel_values[None]), mask.shape, frame=framing.size, box=framing.box((96, 180))
    )
    assert (ids[0].numpy() == mask).mean() > 0.98


@pytest.mark.parametrize("kind", [BeitImageProcessor, MobileViTImageProcessor])
def test_the_crop_size_of_another_image_processor_makes_no_windows(kind):
    framing = Framing.of(kind(do_resize=False, do_center_crop=False))  # their crop_size is 224 or 256 by default
    assert (framing.resize, framing.size) == ("stretch", None)


@pytest.mark.parametrize("size", [(128, 192), (192, 128), (64, 64), (100, 300)])
def test_a_letterbox_is_undone(size):
    mask = lines(size, width=12)
    transform = SegTransform(size=(64, 96), spec=SPEC, resize="letterbox")
    batch = transform({"image": [picture_of(mask)], "mask": [Image.fromarray(mask)]})
    box = centered(fitted_size(size, (64, 96)), (64, 96))
    counted = batch["labels"][0] != SPEC.ignore_index
    assert torch.equal(counted, pad(torch.ones(fitted_size(size, (64, 96)), dtype=bool), (64, 96), False))
    assert not batch["pixel_values"][0, :, ~counted].any()  # black, and without a label
    # what the mask says of a pixel is what the picture shows there
    inside = cut(brightness(batch["pixel_values"]), box).argmax(dim=1)
    assert (inside == cut(batch["labels"], box)).float().mean() > 0.97
    ids, _ = upsampled_argmax(brightness(batch["pixel_values"]), size, frame=(64, 96), box=box)
    wrong = ids[0].numpy() != mask
    assert wrong.mean() < 0.04
    assert not wrong[:4, :4].any() and not wrong[-4:, -4:].any()  # nothing is shifted at the corners
    assert not wrong[:4, -4:].any() and not wrong[-4:, :4].any()
    edges = np.abs(np.diff(mask.astype(int), axis=0, prepend=0)) + np.abs(np.diff(mask.astype(int), axis=1, prepend=0))
    near = torch.nn.functional.max_pool2d(torch.tensor(edges)[None].float(), 9, 1, 4)[0] > 0
    assert not wrong[~near.numpy()].any()


def test_padding_stays_out_of_the_loss_of_a_rectangle():
    mask = Image.new("L", (40, 40), 1)
    transform = SegTransform(size=(32, 96), spec=SPEC, resize="letterbox")
    labels = transform({"image": [mask.convert("RGB")], "mask": [mask]})["labels"]
    assert labels.shape == (1, 32, 96) and (labels == 1).sum() == 32 * 32 and (labels == 255).sum() == 32 * 64


@pytest.mark.parametrize("size", [(1000, 5), (5, 1000)])
def test_of_a_long_and_thin_picture_a_line_is_left(size):
    transform = SegTransform(size=(64, 64), spec=SPEC, resize="letterbox")
    image = Image.new("RGB", size, (255, 128, 0))
    seen = transform({"image": [image], "mask": [Image.new("L", size, 1)]})
    assert (seen["labels"] == 1).sum() == 64 and (seen["labels"] == 255).sum() == 63 * 64
    processor = build_image_processor(size=(64, 64), normalize="none", resize="letterbox")
    torch.testing.assert_close(Framing.of(processor).prepare(processor, image), seen["pixel_values"][0])


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (200, 150), (30, 400), (20, 20)])
def test_windows_see_every_pixel_where_it_is(size):
    processor = build_image_processor(size=(64, 96), normalize="none", resize="crop")
    framing, mask = Framing.of(processor), lines(size)
    pixel_values = framing.prepare(processor, picture_of(mask))
    strips = list(slide(pixel_values, framing.size, 3, lambda part: brightness(part).softmax(dim=1)))
    assert all(strip.shape[1] <= 64 for strip in strips)  # no more is in memory at a time
    probabilities = cut(torch.cat(strips, dim=1), framing.box(size))
    torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(size))
    assert np.array_equal(probabilities.argmax(dim=0).numpy(), mask)  # one pixel wide, and nothing beside it
    ids, confidence = (cut(each, framing.box(size)) for each in strongest(strips))
    assert np.array_equal(ids.numpy(), mask)
    torch.testing.assert_close(confidence, probabilities.amax(dim=0))


def test_windows_are_blended_as_by_weights():
    size, window = (150, 130), (64, 96)
    made = {
        box: torch.rand(2, *window, generator=torch.Generator().manual_seed(sum(box))) for box in windows(size, window)
    }
    ours = torch.cat(list(blend(size, window, 4, lambda part: [made[box] for box in part])), dim=1)
    rows, columns = (torch.minimum(torch.arange(side), side - 1 - torch.arange(side)) + 1.0 for side in window)
    weight, top, bottom = rows[:, None] * columns, torch.zeros(2, *size), torch.zeros(size)
    for box, own in made.items():
        cut(top, box).add_(own * weight)
        cut(bottom, box).add_(weight)
    torch.testing.assert_close(ours, top / bottom)


def test_windows_cover_evenly_and_overlap():
    assert windows((1024, 2048), (1024, 1024)) == [
        (0, 0, 1024, 1024),
        (0, 512, 1024, 1536),
        (0, 1024, 1024, 2048),
    ]
    assert windows((20, 20), (64, 96)) == [(0, 0, 20, 20)]
    seen = []
    list(blend((64, 150), (64, 96), 2, lambda part: seen.append(part) or [torch.ones(1, 64, 96) for _ in part]))
    assert seen == [[(0, 0, 64, 96), (0, 54, 64, 150)]]


@EVERY
def test_the_settings_survive_saving(resize, tmp_path):
    from transformers import AutoImageProcessor

    processor = build_image_processor(size=(64, 96), normalize="inception", resize=resize)
    processor.save_pretrained(tmp_path)
    framing = Framing.of(AutoImageProcessor.from_pretrained(tmp_path))
    assert framing.resize == resize and framing.size == (None if resize == "stretch" else (64, 96))
    assert framing.black.flatten().tolist() == ([0] * 3 if resize == "stretch" else [-1] * 3)
