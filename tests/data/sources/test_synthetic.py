import io
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from hf_seg.data import check_splits, fingerprint, load_spec, load_splits
from hf_seg.data.sources.synthetic import DRAW, SPLIT_SIZES, _draw_and_encode, generate

NAMES = sorted(DRAW)
FEW = {"max_train_samples": 6, "max_validation_samples": 3, "max_test_samples": 2}


def decode(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def pairs(name, split, count):
    images, masks = zip(*(_draw_and_encode(name, split, index) for index in range(count)), strict=True)
    return np.stack([decode(image) for image in images]), np.stack([decode(mask) for mask in masks])


@pytest.mark.parametrize("name", NAMES)
def test_splits(recipe, name):
    data = recipe(name, **FEW)
    splits, spec = load_splits(data), load_spec(data)
    assert splits.num_rows == {"train": 6, "validation": 3, "test": 2}
    check_splits(splits, spec)
    image, mask = splits["train"][0]["image"], splits["train"][0]["mask"]
    assert (image.mode, mask.mode) == ("RGB", "L") and image.size == mask.size


def test_default_sizes(monkeypatch):
    monkeypatch.setitem(DRAW, "synthetic_pet", lambda rng: (PIL.Image.new("RGB", (4, 4)), PIL.Image.new("L", (4, 4))))
    try:
        columns = generate("synthetic_pet", {"train": None, "validation": 5000, "test": 7})
    finally:
        _draw_and_encode.cache_clear()
    assert [len(columns[split]["mask"]) for split in ("train", "validation", "test")] == [1024, 128, 7]
    assert SPLIT_SIZES == {"train": 1024, "validation": 128, "test": 128}


@pytest.mark.parametrize("name", NAMES)
def test_only_what_is_asked_for_is_drawn_and_only_once(recipe, name):
    _draw_and_encode.cache_clear()
    load_splits(recipe(name, **FEW))
    assert _draw_and_encode.cache_info().misses == 11
    load_splits(recipe(name, **FEW))
    assert _draw_and_encode.cache_info().misses == 11


@pytest.mark.parametrize("name", NAMES)
def test_the_first_pictures_do_not_depend_on_the_number(recipe, name):
    few = load_splits(recipe(name, **FEW | {"max_train_samples": 2}))
    _draw_and_encode.cache_clear()  # or the very same bytes would be compared
    more = load_splits(recipe(name, **FEW))
    for index in range(2):
        np.testing.assert_array_equal(few["train"][index]["image"], more["train"][index]["image"])
        np.testing.assert_array_equal(few["train"][index]["mask"], more["train"][index]["mask"])


@pytest.mark.parametrize("name", NAMES)
def test_pictures_differ_within_and_between_splits(name):
    encoded = [_draw_and_encode(name, split, index) for split in SPLIT_SIZES for index in range(5)]
    assert len({image for image, _ in encoded}) == len({mask for _, mask in encoded}) == 15


def test_another_process_draws_the_same(recipe):
    expected = [fingerprint(load_splits(recipe(name, **FEW))) for name in NAMES]
    program = (
        "from hf_seg.data import fingerprint, load_splits\nfrom hf_seg.recipe import DataRecipe\n"
        f"for name in {NAMES}: print(fingerprint(load_splits(DataRecipe(name=name, **{FEW}))))"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout.split() == expected


def test_pet_trimaps_are_animals_within_a_band():
    _, masks = pairs("synthetic_pet", "train", 40)
    assert set(np.unique(masks)) == {1, 2, 3}
    assert all(set(np.unique(mask)) == {1, 2, 3} for mask in masks)
    for a, b in ((masks[:, 1:], masks[:, :-1]), (masks[:, :, 1:], masks[:, :, :-1])):
        assert not ((a == 1) & (b == 2)).any() and not ((a == 2) & (b == 1)).any()  # the band is closed
    shares = np.bincount(masks.ravel(), minlength=4)[1:] / masks.size
    assert 0.15 < shares[0] < 0.4 and 0.5 < shares[1] < 0.8 and 0.05 < shares[2] < 0.15


def test_streets_hold_all_classes_and_void(recipe):
    _, masks = pairs("synthetic_cityscapes", "train", 60)
    labels = np.array(load_spec(recipe("synthetic_cityscapes")).label_table)[masks]
    assert set(np.unique(labels)) == {*range(19), 255}
    assert all((labels == label).any((1, 2)).mean() > 0.15 for label in range(19))
    assert 0.02 < (labels == 255).mean() < 0.2


def test_colour_alone_does_not_find_the_animals():
    """The best guess from a pixel's colour, learned from 150 pictures, is far from what a model of shapes reaches."""

    def colours(images):
        return (images // 32).astype(int) @ (64, 8, 1)

    images, masks = pairs("synthetic_pet", "train", 150)
    counts = np.zeros((512, 4), int)
    np.add.at(counts, (colours(images).ravel(), masks.ravel()), 1)
    images, masks = pairs("synthetic_pet", "validation", 50)
    for weights in ((1, 1), (1, 3)):  # also when it is pushed towards animals
        animal = counts[:, 1] * weights[1] > (counts[:, 2] + counts[:, 3]) * weights[0]
        guess, truth = animal[colours(images)], masks == 1
        assert (guess & truth).sum() / (guess | truth).sum() < 0.4
