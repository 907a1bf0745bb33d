"""`SegData`: the data of a recipe, loaded once and handed on whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from hf_seg.data import DatasetSpec, describe_dropped, fingerprint, load_spec, load_splits, prepare_splits
from hf_seg.data.cache import PreparedPairs
from hf_seg.data.transforms import SegTransform, build_transforms
from hf_seg.recipe.keys import DataRecipe


@dataclass(kw_only=True)
class SegData:
    """What a run reads. The mappings are by split: `"train"`, `"validation"` and `"test"`.

    Args:
        spec ([`DatasetSpec`]): names the classes and the label that is ignored.
        splits (`Mapping[str, Dataset]`): the pairs as they are stored.
        transforms (`Mapping[str, SegTransform]`): from these to the model's input.
        prepared (`Mapping[str, PreparedPairs]`): resized pairs, ready to be read in batches.
        dropped (`dict`): what `results.json` records of the pairs that were left out.
    """

    spec: DatasetSpec
    splits: Mapping[str, Dataset]
    transforms: Mapping[str, SegTransform]
    prepared: Mapping[str, PreparedPairs]
    dropped: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Pairs of each split."""
        return {name: len(split) for name, split in self.splits.items()}

    @property
    def fingerprint(self) -> str:
        """Names the pairs: the same files give the same 16 hex digits, wherever they are."""
        return fingerprint(self.splits)

    def describe(self) -> dict[str, Any]:
        """What a run records of its data; ready for JSON."""
        return {
            "name": self.spec.name,
            **self.spec.describe(),
            "fingerprint": self.fingerprint,
            "counts": self.counts,
            **self.dropped,
            "stored_size": {name: list(split[0]["image"].size) for name, split in self.splits.items()},
        }


def load_data(data: DataRecipe) -> SegData:
    """Load, check and prepare the data of a recipe.

    Raises:
        DataError: when it is not there, or a pair cannot be used.
    """
    spec, splits = load_spec(data), load_splits(data)
    transforms = build_transforms(data, spec)
    prepared = prepare_splits(splits, spec, transforms, data.cache)
    return SegData(spec=spec, splits=splits, transforms=transforms, prepared=prepared, dropped=describe_dropped(data))
