"""Folders as the official data sets have them, made up; fixtures for the tests of `data` and `doctor`."""

import numpy as np
import PIL.Image
import pytest
from huggingface_hub import constants

from hf_seg.recipe.keys import DataRecipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test has a cache folder of its own and no HF_SEG_DATA."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.delenv("HF_SEG_DATA", raising=False)


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(np.asarray(array, np.uint8))
    # The content's format is PNG under every name, except where a test asks for another one.
    image.save(path, "PNG")
    return path


def random_pixels(number, size=(12, 8)):
    return np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3))


def write_street(root, split, city, name, number=0, suffix="png"):
    write_png(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.{suffix}", random_pixels(number))
    write_png(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", random_pixels(number)[..., 0] % 34)


@pytest.fixture
def write():
    return write_png


@pytest.fixture
def picture():
    return random_pixels


@pytest.fixture
def cityscapes_pair():
    return write_street


@pytest.fixture
def pet_folder(tmp_path):
    """A folder in the official layout: 20 names in trainval, 3 in test, trimaps of 1, 2, 3."""
    root = tmp_path / "pets"
    names = {"trainval": [f"Breed_{i:02}" for i in range(20)], "test": ["Cat_1", "Cat_2", "Cat_3"]}
    for number, name in enumerate(names["trainval"] + names["test"]):
        write_png(root / "images" / f"{name}.jpg", random_pixels(number))
        write_png(root / "annotations" / "trimaps" / f"{name}.png", random_pixels(number)[..., 0] % 3 + 1)
    for split, listed in names.items():
        lines = [f"{name} 1 1 1" for name in listed]
        (root / "annotations" / f"{split}.txt").write_text("#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(lines))
    return root


@pytest.fixture
def cityscapes_folder(tmp_path):
    """A folder in the official layout: five train cities of two pairs, one val city of one pair, and a test split."""
    root = tmp_path / "streets"
    for number, city in enumerate(("aachen", "bochum", "ulm", "weimar", "zurich")):
        for frame in range(2):
            write_street(root, "train", city, f"{city}_{frame:06}_000019", 2 * number + frame)
    write_street(root, "val", "frankfurt", "frankfurt_000000_000294", 20)
    write_street(root, "test", "berlin", "berlin_000000_000019", 21)
    return root


@pytest.fixture
def recipe():
    def build(name, root=None, **limits):
        return DataRecipe(name=name, root=None if root is None else str(root), **limits)

    return build
