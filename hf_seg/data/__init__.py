"""The data of a recipe: 🤗 datasets with the columns `image` and `mask`, checked, and prepared for training."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from datasets import Dataset, DatasetDict

from hf_seg.data.check import check_splits, drop_bad_pairs, fingerprint
from hf_seg.data.pairs import image_name
from hf_seg.data.sources import fetch, list_data, load_spec
from hf_seg.data.spec import DatasetSpec
from hf_seg.problem import DataError, Problem
from hf_seg.text import printable

if TYPE_CHECKING:
    from hf_seg.data.prepared import PreparedPairs
    from hf_seg.data.transforms import SegTransform
    from hf_seg.recipe.keys import DataRecipe

__all__ = [
    "DatasetSpec", "SegData", "check_splits", "fingerprint", "image_name", "list_data", "load_data", "load_spec",
    "load_splits",
]  # fmt: skip

logger = logging.getLogger(__name__)

NOT_COMPARABLE = (
    "pairs were left out (data.on_bad_pair is drop): the scores are not comparable with those of a run on all pairs."
)

NO_PAIR = "Each of train, validation and test needs at least one."
NOTHING_COUNTS = (
    "Correct its masks, or the meaning of their values in classes.json. Masks lose labels of single pixels when they "
    'are reduced: then choose a larger data.image_size, or "crop" for data.resize.'
)


@dataclass(kw_only=True)
class SegData:
    """The data of a run. The mappings have the keys `"train"`, `"validation"` and `"test"`."""

    spec: DatasetSpec
    splits: Mapping[str, Dataset]  # the pairs as they are stored, with the columns `image` and `mask`
    transforms: Mapping[str, SegTransform]  # turn these pairs into the model's input
    prepared: Mapping[str, PreparedPairs]  # resized pairs, ready to be read in batches
    dropped: list[Problem] | None = None  # pairs left out; None unless data.on_bad_pair is "drop"

    @property
    def counts(self) -> dict[str, int]:
        """The number of pairs of each split."""
        return {name: len(split) for name, split in self.splits.items()}

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the pairs: the same files give the same digits in any folder."""
        return fingerprint(self.splits)

    def describe(self) -> dict[str, Any]:
        """Return what a run records about its data, as JSON-compatible values."""
        return {
            "name": self.spec.name,
            **self.spec.describe(),
            "fingerprint": self.fingerprint,
            "counts": self.counts,
            **describe_dropped(self.dropped),
            "stored_size": {name: list(split[0]["image"].size) for name, split in self.splits.items()},
        }


def load_data(data: DataRecipe) -> SegData:
    """Load, check and prepare the data of a recipe.

    Raises:
        DataError: when the data set is missing or incomplete, a split is empty or has no pixel with a class, or a pair
            cannot be used.
    """
    from hf_seg.data.cache import prepare_splits  # importing torch takes seconds, and listing pairs does not need it
    from hf_seg.data.transforms import build_transforms

    spec, splits, dropped = load_pairs(data)
    transforms = build_transforms(data, spec)
    prepared = prepare_splits(splits, spec, transforms, data.cache)
    check_labels(data.root or data.path or spec.name, prepared, spec.ignore_index)
    return SegData(spec=spec, splits=splits, transforms=transforms, prepared=prepared, dropped=dropped)


def check_labels(place: str, prepared: Mapping[str, PreparedPairs], ignore_index: int) -> None:
    """Raise a DataError if no pixel of a split has a class; usually the first pair already has one."""

    def is_void(pairs: PreparedPairs) -> bool:
        return all((pairs[index]["labels"] == ignore_index).all() for index in range(len(pairs)))

    if void := [name for name, pairs in prepared.items() if is_void(pairs)]:
        what = f"no pixel of {' and '.join(void)} has a class"
        raise DataError(place, what, NOTHING_COUNTS, code="empty-split")


def load_splits(data: DataRecipe) -> DatasetDict:
    """Load the three splits of a recipe's data set. Pairs are not decoded yet, unless bad pairs are dropped.

    Returns:
        [`DatasetDict`]: `train`, `validation` and `test`, each with the columns `image` (an RGB PIL image on access)
        and `mask` (a PIL image of one 8-bit channel; the spec's label table says what its values mean). Pictures of
        the data sets that hf_seg knows are as stored, without EXIF rotation. In your own data, images are rotated by
        their EXIF orientation and masks hold class ids; a table also has `origin`, the name of a row in messages.

    Raises:
        DataError: when the data set is missing, cannot be downloaded or loaded, is incomplete, or has an empty split.
    """
    return load_pairs(data)[1]


def load_pairs(data: DataRecipe) -> tuple[DatasetSpec, DatasetDict, list[Problem] | None]:
    """Return the spec, the splits of [`load_splits`], and the problems of dropped pairs (None: dropping is off)."""
    fetch(data)
    listing, drop = list_data(data), data.on_bad_pair == "drop"
    listing.refuse(drop=drop)
    if listing.save_split:
        listing.save_split()
    _warn(tuple(map(str, listing.notes)))
    splits, dropped = listing.splits, None
    if drop:
        splits, more = drop_bad_pairs(splits, listing.spec)
        dropped = listing.bad_pairs + more
        lines = [f"{problem.place}: left out: {problem.what}" for problem in dropped]
        _warn((*lines, f"{listing.place}: {len(dropped)} {NOT_COMPARABLE}") if dropped else ())
    for split, dataset in splits.items():
        if not len(dataset):
            raise DataError(listing.place, f"the {split} split has no usable pair", NO_PAIR)
    if drop and data.name == "folder":
        dropped = [replace(problem, place=os.path.relpath(problem.place, listing.place)) for problem in dropped]
    return listing.spec, splits, dropped


def describe_dropped(dropped: list[Problem] | None) -> dict[str, Any]:
    """Return what a run records about dropped pairs, as JSON-compatible values: {} unless `on_bad_pair` is "drop"."""
    if dropped is None:
        return {}
    described = {"dropped": [{"file": problem.place, "reason": problem.what} for problem in dropped]}
    return described | ({"note": f"{len(dropped)} {NOT_COMPARABLE}"} if dropped else {})


@functools.cache  # warns once per process, although a launch loads its data several times
def _warn(lines: tuple[str, ...]) -> None:
    for line in lines:
        logger.warning("%s", printable(line))
