"""The data of a recipe as 🤗 datasets with the columns `image` and `mask`."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict, Features

from hf_seg.data.cache import prepare_splits
from hf_seg.data.check import check_splits, drop_bad_pairs, fingerprint
from hf_seg.data.columns import UprightImage
from hf_seg.data.pairs import image_name
from hf_seg.data.sources import cityscapes, folder, oxford_pet, synthetic
from hf_seg.data.sources import table as hub_dataset
from hf_seg.data.sources.download import find_folder
from hf_seg.data.spec import DatasetSpec
from hf_seg.data.stored_image import StoredImage
from hf_seg.problem import DataError, PairError

if TYPE_CHECKING:
    from hf_seg.recipe.keys import DataRecipe

__all__ = [
    "DataError",
    "DatasetSpec",
    "check_splits",
    "describe_dropped",
    "fingerprint",
    "image_name",
    "load_spec",
    "load_splits",
    "prepare_splits",
]

logger = logging.getLogger(__name__)

SPECS = {spec.name: spec for spec in (oxford_pet.SPEC, cityscapes.SPEC, synthetic.PET_SPEC, synthetic.CITYSCAPES_SPEC)}
NOT_COMPARABLE = (
    "pairs were left out (data.on_bad_pair is drop): the scores are not comparable with those of a run on all pairs."
)


def load_spec(data: DataRecipe) -> DatasetSpec:
    """Load what the masks of a recipe's data set mean; touches no file but the `classes.json` of the user's own data.

    Args:
        data (`DataRecipe`): the recipe's data section.

    Returns:
        [`DatasetSpec`]: class names, palette, label table.

    Raises:
        DataError: when the user's own folder, or its `classes.json`, is not there or not in order.
    """
    if data.name == "folder":
        return folder.build_spec(folder.find_root(data.root))
    return hub_dataset.build_hub_spec(data) if data.name == "hub" else SPECS[data.name]


def load_splits(data: DataRecipe) -> DatasetDict:
    """Load the three splits of a recipe's data set; nothing is decoded yet, unless bad pairs are to be dropped.

    Args:
        data (`DataRecipe`): the recipe's data section; `max_*_samples` keep the first samples of a split.

    Returns:
        [`DatasetDict`]: `train`, `validation` and `test`, each with the columns `image` (an RGB PIL image on access)
        and `mask` (a PIL image of one 8-bit channel; the spec's label table says what its values mean). The data sets
        that hf_seg knows are given as stored, without EXIF rotation. Of your own data, photographs are upright and
        masks hold class ids; rows of a table also have their `origin`, a name for messages. With `on_bad_pair` "drop",
        pairs that cannot be used are left out.

    Raises:
        DataError: when the data set is not there, cannot be had, is incomplete, or has an empty split.
    """
    if data.name in ("folder", "hub"):
        return _load_own(data)[0]
    limits = _limits(data)
    # Paths (or, for generated data, encoded bytes) go into the table as they are; StoredImage decodes on access.
    features = Features({"image": StoredImage(mode="RGB"), "mask": StoredImage()})
    if data.name in synthetic.DRAW:
        columns = synthetic.generate(data.name, limits)
        return DatasetDict({split: Dataset.from_dict(table, features=features) for split, table in columns.items()})
    source = {"oxford_pet": oxford_pet, "cityscapes": cityscapes}[data.name]
    place = find_folder(data.root, source.FOLDER_NAME, source.PARTS)
    source.prepare(place, may_download=data.root is None)
    pairs = source.list_pairs(place)
    for split, listed in pairs.items():
        if not listed:
            raise DataError(f"{place}: the {split} split of {data.name} is empty. {source.SPLIT_RULE}")
    return _tables(pairs, limits, features)


def describe_dropped(data: DataRecipe) -> dict[str, Any]:
    """What a run records of the pairs that `load_splits` left out; ready for JSON.

    Args:
        data (`DataRecipe`): the recipe's data section.

    Returns:
        `dict`: empty unless `on_bad_pair` is "drop"; else `dropped`, a list of `file` (below the data's folder, or the
        row of a table) and `reason`, and, when it is not empty, `note`, which says that the scores are not comparable.
    """
    if data.on_bad_pair != "drop":
        return {}
    errors = _load_own(data)[1]
    dropped = [
        {
            "file": os.path.relpath(problem.place, folder.find_root(data.root))
            if data.name == "folder"
            else problem.place,
            "reason": problem.what,
        }
        for problem in (error.problem for error in errors)
    ]
    return {"dropped": dropped} | ({"note": f"{len(errors)} {NOT_COMPARABLE}"} if errors else {})


def _limits(data: DataRecipe) -> dict[str, int | None]:
    return {
        "train": data.max_train_samples,
        "validation": data.max_validation_samples,
        "test": data.max_test_samples,
    }


def _load_own(data: DataRecipe) -> tuple[DatasetDict, list[PairError]]:
    """The splits of a person's own data, and the pairs that were dropped."""
    limits = _limits(data)
    if data.name == "folder":
        root = folder.find_root(data.root)
        name, mask = str(root), folder.build_mask_column(root)
        pairs, errors = folder.list_pairs(root, drop=data.on_bad_pair == "drop")
        splits = _tables(pairs, limits, Features({"image": UprightImage(), "mask": mask}))
    else:
        name = hub_dataset.data_set_name(data.path)
        rows, errors = hub_dataset.load_hub_splits(data)
        counts = {split: min(len(table), limits[split] or len(table)) for split, table in rows.items()}
        splits = DatasetDict({split: table.take(counts[split]) for split, table in rows.items()})
    if data.on_bad_pair == "drop":
        splits, more = drop_bad_pairs(splits, load_spec(data))
        errors += more
        _announce(name, tuple(f"{e.problem.place}: left out: {e.problem.what}" for e in errors))
    for split, dataset in splits.items():
        if not len(dataset):
            raise DataError(f"{name}: the {split} split holds no pair that can be used; each split needs one.")
    return splits, errors


def _tables(
    pairs: Mapping[str, Sequence[tuple[Path, Path]]], limits: Mapping[str, int | None], features: Features
) -> DatasetDict:
    splits = {}
    for split, listed in pairs.items():
        kept = listed[: limits[split]]
        columns = {"image": [str(image) for image, _ in kept], "mask": [str(mask) for _, mask in kept]}
        splits[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(splits)


@functools.cache  # once a process, though a launch loads its data several times
def _announce(name: str, lines: tuple[str, ...]) -> None:
    for line in lines:
        logger.warning("%s", line)
    if lines:
        logger.warning("%s: %d %s", name, len(lines), NOT_COMPARABLE)
