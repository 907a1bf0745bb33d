"""Make data roots in the official layouts with pictures of original size: a few pictures, linked many times.

The pictures come from an existing data root (`--data`, a folder with oxford-iiit-pet and cityscapes), or are drawn by
hf_seg and enlarged. A program that reads the root sees each link as a separate picture and decodes it.
"""

from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from hf_seg.data import load_splits
from hf_seg.data.sources import cityscapes, oxford_pet
from hf_seg.recipe.keys import DataRecipe

Pair = tuple[Path, Path]
VALIDATION_SHARE = {"oxford_pet": 1 / 9, "cityscapes": 359 / 2616}  # validation pairs ÷ train pairs
TRAIN_PAIRS = {"oxford_pet": 3312, "cityscapes": 2616}
SYNTHETIC = {"oxford_pet": "synthetic_pet", "cityscapes": "synthetic_cityscapes"}
DRAWN = {"oxford_pet": ((500, 375), 100), "cityscapes": ((2048, 1024), 6)}  # width and height; number of pictures
CITIES = ("aachen", "tuebingen", "ulm", "zurich")  # the last three are validation


def build_root(name: str, folder: Path, data: Path | None, train_pairs: int) -> tuple[Path, dict[str, int]]:
    """Make a data root with `train_pairs` train pairs, validation pairs in the official proportion, and one test pair.

    Args:
        name (`str`): `oxford_pet` or `cityscapes`.
        folder (`Path`): where to make it.
        data (`Path`, *optional*): folder with original files in the official layouts; None to draw pictures.
        train_pairs (`int`): number of train pairs.

    Returns:
        The root, for `data.root` of a recipe, and the number of pairs of each split.
    """
    found = _originals(name, data) if data else _draw(name, folder / "drawn")
    root = folder / "root"
    if name == "oxford_pet":
        trainval = _link_pets(root / oxford_pet.FOLDER_NAME, found, train_pairs)
        return root, {"train": train_pairs, "validation": trainval - train_pairs, "test": 1}
    validation = max(3, round(train_pairs * VALIDATION_SHARE[name]))
    _link_streets(root / cityscapes.FOLDER_NAME, found, train_pairs, validation)
    return root, {"train": train_pairs, "validation": validation, "test": 1}


def _originals(name: str, data: Path) -> list[Pair]:
    if name == "oxford_pet":
        listed = oxford_pet.list_pairs(data / oxford_pet.FOLDER_NAME).values()
        return [pair for pairs in listed for pair in pairs]
    streets = data / cityscapes.FOLDER_NAME
    masks = sorted(streets.glob("gtFine/*/*/*_gtFine_labelIds.png"))
    return [(_image_of(mask), mask) for mask in masks]


def _image_of(mask: Path) -> Path:
    city = mask.parent
    name = mask.name.replace("_gtFine_labelIds.png", "_leftImg8bit.png")
    return city.parents[2] / "leftImg8bit" / city.parent.name / city.name / name


def _draw(name: str, folder: Path) -> list[Pair]:
    """Generate and enlarge pictures; noise is added so that they do not decode faster than photographs."""
    size, count = DRAWN[name]
    folder.mkdir(parents=True)
    recipe = DataRecipe(
        name=SYNTHETIC[name],
        max_train_samples=count,
        max_validation_samples=1,
        max_test_samples=1,
    )
    random, pairs = np.random.default_rng(0), []
    for index, row in enumerate(load_splits(recipe)["train"]):
        pixels = np.asarray(row["image"].resize(size, Image.Resampling.BICUBIC), np.int16)
        noisy = Image.fromarray((pixels + random.integers(-3, 4, pixels.shape)).clip(0, 255).astype(np.uint8))
        image = folder / f"{index}{'.jpg' if name == 'oxford_pet' else '.png'}"
        mask = folder / f"{index}_mask.png"
        noisy.save(image, **({"quality": 90} if name == "oxford_pet" else {}))
        row["mask"].resize(size, Image.Resampling.NEAREST).save(mask)
        pairs.append((image, mask))
    return pairs


def _link_pets(root: Path, found: list[Pair], train_pairs: int) -> int:
    """Link the pairs in the layout of Oxford-IIIT Pet, where every tenth name of trainval is validation; return the
    number of names in trainval."""
    count = train_pairs + train_pairs // 9
    names = [f"pet_{number:05}" for number in range(count)]
    for name, (image, mask) in zip([*names, "test_00000"], cycle(found), strict=False):
        _link(image, root / "images" / f"{name}.jpg")
        _link(mask, root / "annotations" / "trimaps" / f"{name}.png")
    (root / "annotations" / "trainval.txt").write_text("".join(f"{name} 0 0 0\n" for name in names))
    (root / "annotations" / "test.txt").write_text("test_00000 0 0 0\n")
    return count


def _link_streets(root: Path, found: list[Pair], train_pairs: int, validation_pairs: int) -> None:
    train, *held_out = CITIES
    places = [("train", train, number) for number in range(train_pairs)]
    places += [("train", held_out[number % 3], number) for number in range(validation_pairs)] + [("val", train, 0)]
    for (split, city, number), (image, mask) in zip(places, cycle(found), strict=False):
        name = f"{city}_{number:06}_000019"
        _link(image, root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        _link(mask, root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png")


def _link(file: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(file.resolve())
