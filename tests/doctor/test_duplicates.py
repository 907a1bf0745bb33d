"""Copies of a photograph are found whatever was done to the file; different ones, and blank ones, are not reported."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from hf_seg.data.sources.synthetic import generate
from hf_seg.doctor.duplicates import COLUMNS, find_duplicates, is_flat, thumbnail


@pytest.fixture(scope="module")
def photographs():
    """Forty animals and forty streets, all different."""
    pictures = []
    for name in ("synthetic_pet", "synthetic_cityscapes"):
        table = generate(name, {"train": 40, "validation": 1, "test": 1})["train"]
        pictures += [Image.open(io.BytesIO(stored["bytes"])).convert("RGB") for stored in table["image"]]
    return pictures


def encoded(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


CHANGES = {
    "the same": lambda image: image,
    "JPEG at quality 30": lambda image: encoded(image, 30),
    "half the size": lambda image: encoded(image.resize((image.width // 2, image.height // 2)), 75),
    "twice the size": lambda image: encoded(image.resize((image.width * 2, image.height * 2)), 90),
    "another aspect ratio": lambda image: image.resize((128, 128)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_copy_is_found_and_nothing_else(change, photographs):
    copies = [CHANGES[change](image) for image in photographs]
    found = list(find_duplicates(np.stack([thumbnail(image) for image in photographs + copies])))
    assert sorted(pair[:2] for pair in found) == [(n, n + len(copies)) for n in range(len(copies))]
    assert all(0.95 <= similarity <= 1 for *_, similarity in found)


def test_blank_pictures_are_no_copies():
    blank = np.stack([np.full((16, 16), grey, np.uint8) for grey in (0, 0, 128, 255)])
    assert is_flat(blank).all() and list(find_duplicates(blank)) == []
    assert list(find_duplicates(np.empty((0, 16, 16), np.uint8))) == []


def test_far_apart_in_a_large_set():
    random = np.random.default_rng(0)
    thumbnails = random.integers(0, 256, (COLUMNS + 700, 16, 16), dtype=np.uint8)
    pairs = [(0, 1), (3, 255), (255, 256), (600, COLUMNS + 1), (5, COLUMNS + 699), (COLUMNS, COLUMNS + 300)]
    for first, second in pairs:
        thumbnails[second] = thumbnails[first]
    found = {pair[:2] for pair in find_duplicates(thumbnails)}
    assert found == {*pairs, (3, 256)}  # a chain: 3, 255 and 256 are all the same
