"""The data of a recipe as 🤗 datasets with the columns `image` and `mask`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets import Dataset, DatasetDict, Features

from hf_seg.data import cityscapes, oxford_pet, synthetic
from hf_seg.data.check import check_splits, fingerprint
from hf_seg.data.download import find_folder
from hf_seg.data.spec import DataError, DatasetSpec
from hf_seg.data.stored_image import StoredImage

if TYPE_CHECKING:
    from hf_seg.recipe import DataRecipe

__all__ = ["DataError", "DatasetSpec", "check_splits", "fingerprint", "load_spec", "load_splits"]

SPECS = {spec.name: spec for spec in (oxford_pet.SPEC, cityscapes.SPEC, synthetic.PET_SPEC, synthetic.CITYSCAPES_SPEC)}


def load_spec(data: DataRecipe) -> DatasetSpec:
    """Load what the masks of a recipe's data set mean; touches no file.

    Args:
        data (`DataRecipe`): the recipe's data section.

    Returns:
        [`DatasetSpec`]: class names, palette, label table.
    """
    return SPECS[data.name]


def load_splits(data: DataRecipe) -> DatasetDict:
    """Load the three splits of a recipe's data set; nothing is decoded yet.

    Args:
        data (`DataRecipe`): the recipe's data section; `max_*_samples` keep the first samples of a split.

    Returns:
        [`DatasetDict`]: `train`, `validation` and `test`, each with the columns `image` (an RGB PIL image on access)
        and `mask` (a PIL image with the raw values of the file; the spec's label table says what they mean).
        Both are given as stored, without EXIF rotation.

    Raises:
        DataError: when the data set is not there, cannot be had, is incomplete, or has an empty split.
    """
    limits = {
        "train": data.max_train_samples,
        "validation": data.max_validation_samples,
        "test": data.max_test_samples,
    }
    if data.name in synthetic.DRAW:
        columns = synthetic.generate(data.name, limits)
    else:
        source = {"oxford_pet": oxford_pet, "cityscapes": cityscapes}[data.name]
        folder = find_folder(data.root, source.FOLDER_NAME, source.PARTS)
        source.prepare(folder, may_download=data.root is None)
        columns = {}
        for split, pairs in source.list_pairs(folder).items():
            if not pairs:
                raise DataError(f"{folder}: the {split} split of {data.name} is empty. {source.SPLIT_RULE}")
            images, masks = zip(*pairs[: limits[split]], strict=True)
            columns[split] = {"image": [str(path) for path in images], "mask": [str(path) for path in masks]}
    # Paths (or, for generated data, encoded bytes) go into the table as they are; StoredImage decodes on access.
    features = Features({"image": StoredImage(mode="RGB"), "mask": StoredImage()})
    return DatasetDict({split: Dataset.from_dict(table, features=features) for split, table in columns.items()})
