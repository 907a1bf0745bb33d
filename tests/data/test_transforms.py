import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from hf_seg.data.spec import INVALID, DatasetSpec
from hf_seg.data.transforms import SegTransform
from hf_seg.models.build import build_image_processor
from hf_seg.problem import DataError
from hf_seg.recipe.keys import NORMALIZATIONS

SPEC = DatasetSpec(
    name="three",
    class_names=("a", "b", "c"),
    palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)),
    label_table=(255, 0, 1, 2, *[INVALID] * 252),
)


def photograph(size=(90, 70), seed=0, mode="RGB"):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC).convert(mode)


def mask(size=(90, 70), seed=1):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 4, (size[1], size[0]), dtype=np.uint8))


def transform(**options):
    return SegTransform(**({"size": (64, 64), "spec": SPEC} | options))


def test_shapes_types_and_ranges():
    out = transform()({"image": [photograph(), photograph((64, 40))], "mask": [mask(), mask((64, 40))]})
    assert out["pixel_values"].shape == (2, 3, 64, 64) and out["pixel_values"].dtype == torch.float32
    assert 0 <= out["pixel_values"].min() and out["pixel_values"].max() <= 1
    assert out["labels"].shape == (2, 64, 64) and out["labels"].dtype == torch.int64
    assert set(out["labels"].unique().tolist()) == {0, 1, 2, 255}


def test_convention_against_torchvision():
    image, ids = photograph(), mask()
    out = transform()({"image": [image], "mask": [ids]})
    tensor = torchvision.transforms.v2.functional.pil_to_tensor(image)
    bilinear = torchvision.transforms.v2.functional.resize(tensor, [64, 64], antialias=True)
    torch.testing.assert_close(out["pixel_values"][0], bilinear / 255, rtol=0, atol=1e-7)
    # torchvision's first API computes in float and rounds: the same up to one grey level
    first_api = torchvision.transforms.functional.resize(tensor, [64, 64], antialias=True)
    assert (bilinear.int() - first_api.int()).abs().max() <= 1
    # nearest-exact, written out: the source pixel whose area holds the centre of the target pixel
    rows = (np.arange(64) + 0.5) * 70 // 64
    columns = (np.arange(64) + 0.5) * 90 // 64
    expected = np.array([255, 0, 1, 2])[np.asarray(ids)][np.ix_(rows.astype(int), columns.astype(int))]
    assert (out["labels"][0].numpy() == expected).all()


@pytest.mark.parametrize("normalize", ["none", *NORMALIZATIONS])
def test_training_and_inference_see_the_same_pixels(normalize):
    image = photograph((333, 500))
    ours = transform(normalize=normalize)({"image": [image], "mask": [mask((333, 500))]})["pixel_values"]
    processor = build_image_processor(size=(64, 64), normalize=normalize)
    torch.testing.assert_close(ours, processor(image, return_tensors="pt")["pixel_values"], rtol=0, atol=1e-6)


def test_no_resize_keeps_every_pixel():
    image, ids = photograph((64, 64)), mask((64, 64))
    out = transform()({"image": [image], "mask": [ids]})
    assert (out["pixel_values"][0].permute(1, 2, 0).mul(255).round().numpy() == np.asarray(image)).all()
    assert (out["labels"][0].numpy() == np.array([255, 0, 1, 2])[np.asarray(ids)]).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_photographs_of_any_mode(mode):
    out = transform()({"image": [photograph(mode=mode)], "mask": [mask()]})
    assert out["pixel_values"].shape == (1, 3, 64, 64)


def test_palette_mask_is_read_by_index():
    ids = mask()
    palette = ids.convert("P")
    palette.frombytes(ids.tobytes())
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    assert palette.mode == "P"
    plain, indexed = (transform()({"image": [photograph()], "mask": [m]})["labels"] for m in (ids, palette))
    assert torch.equal(plain, indexed)


@pytest.mark.parametrize("augment", ["flip", "standard", "strong"])
def test_image_and_mask_move_as_one(augment, monkeypatch):
    # each pixel of the photograph shows its own class id as a grey level, so any misalignment is visible
    ids = Image.fromarray(np.kron(np.random.default_rng(0).integers(1, 4, (4, 4)), np.ones((32, 32))).astype(np.uint8))
    image = Image.fromarray(np.repeat(np.asarray(ids)[..., None] * 60, 3, axis=2))
    torch.manual_seed(0)
    augmented = transform(augment=augment)
    # grey levels must survive to be compared
    monkeypatch.setattr("hf_seg.data.transforms.jitter_colors", lambda images, generator: images)
    for _ in range(20):
        out = augmented({"image": [image], "mask": [ids]})
        seen = (out["pixel_values"][0, 0] * 255 / 60).round().long() - 1
        agree = (seen == out["labels"][0]).float().mean()
        assert agree > 0.93, agree  # what is left lies on the borders, where bilinear interpolation blends


@pytest.mark.parametrize("augment", ["standard", "strong"])
def test_masks_never_get_an_interpolated_value_or_a_colour_change(augment):
    ids = Image.fromarray(np.where(np.random.default_rng(0).random((70, 90)) < 0.5, 1, 3).astype(np.uint8))
    torch.manual_seed(0)
    for _ in range(20):
        out = transform(augment=augment)({"image": [photograph()], "mask": [ids]})
        assert set(out["labels"].unique().tolist()) == {0, 2}  # class 1 lies between them and never appears


def test_augmentation_differs_between_images_and_repeats_with_the_seed():
    batch = {"image": [photograph()] * 4, "mask": [mask()] * 4}
    torch.manual_seed(3)
    first = transform(augment="standard")(batch)
    second = transform(augment="standard")(batch)
    torch.manual_seed(3)
    again = transform(augment="standard")(batch)
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    assert not torch.equal(first["pixel_values"][0], first["pixel_values"][1])


@pytest.mark.parametrize("augment", ["none", "flip", "standard", "strong"])
def test_the_two_steps_are_the_whole(augment):
    batch = {"image": [photograph(), photograph((64, 40))], "mask": [mask(), mask((64, 40))]}
    steps = transform(augment=augment)
    prepared = steps.prepare(batch)
    size = {"standard": 96, "strong": 128}.get(augment, 64)
    assert steps.prepared_size == (size, size)
    assert prepared["pixel_values"].shape == (2, 3, size, size) and prepared["labels"].shape == (2, size, size)
    assert all(values.dtype == torch.uint8 for values in prepared.values())
    torch.manual_seed(0)
    whole = steps(batch)
    torch.manual_seed(0)
    finished = steps.finish(prepared)
    drawn = steps.finish(prepared, torch.Generator().manual_seed(0))
    for key in ("pixel_values", "labels"):
        assert torch.equal(whole[key], finished[key]) and torch.equal(whole[key], drawn[key])
        assert whole[key].shape[-1] == 64


@pytest.mark.parametrize(
    ("image", "ids", "message"),
    [
        (photograph(), mask((90, 71)), "90×70 pixels has a mask of 90×71"),
        (photograph(), photograph(), "mode RGB has several channels"),
        (photograph(), Image.new("L", (90, 70), 9), r"values \[9\], which belong to no class of three"),
        (photograph(), Image.new("I;16", (90, 70), 257), r"values \[257\]"),
    ],
)
def test_bad_pairs_are_refused(image, ids, message):
    with pytest.raises(DataError, match=message):
        transform()({"image": [image], "mask": [ids]})


def test_unknown_augmentation():
    with pytest.raises(ValueError, match="augment: 'flips' is not one of none, flip, standard, strong"):
        transform(augment="flips")
