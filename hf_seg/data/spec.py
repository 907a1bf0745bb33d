"""The classes of a data set (names, colours, table from raw mask values to class ids), and its terms of use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

IGNORE_INDEX = 255  # label of pixels that loss and metrics ignore
INVALID = -1  # table entry of raw values that no mask of the data set may contain


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The classes of a data set, how its mask files encode them, and the facts that model cards need about it."""

    name: str  # as in a recipe's `data.name`
    class_names: tuple[str, ...]  # the position is the class id
    palette: tuple[tuple[int, int, int], ...]  # one RGB colour per class, components in [0, 255]
    label_table: tuple[int, ...]  # of length 256: raw mask value → class id, `ignore_index`, or `INVALID`
    ignore_index: int = IGNORE_INDEX
    title: str | None = None  # name for readers; `describe` gives `name` if None
    homepage: str | None = None  # where the data set and its terms are published
    terms: str | None = None  # permitted uses of the data, in a sentence or two; None if not known
    # name, in the Hub's metadata, of the terms that bind a model trained on the data: lower case, with hyphens
    license_name: str | None = None
    split_rule: str | None = None  # which pictures are train, validation and test
    publish_images: bool = False  # whether the terms allow showing its pictures in public
    official_size: str | None = None  # size of the published pictures; a run with smaller ones used a reduced copy
    limits: tuple[str, ...] = ()  # limits of the data and of models trained on it, a sentence or two each

    def __post_init__(self) -> None:
        if len(self.palette) != self.num_labels or len(set(self.class_names)) != self.num_labels:
            raise ValueError(f"{self.name}: {self.num_labels} classes need as many different names and colours")
        if len(self.label_table) != 256:
            raise ValueError(f"{self.name}: the label table has {len(self.label_table)} entries instead of 256")
        strange = set(self.label_table) - {*range(self.num_labels), self.ignore_index, INVALID}
        if strange:
            raise ValueError(f"{self.name}: the label table maps to {sorted(strange)}, which are not classes")

    @property
    def num_labels(self) -> int:
        return len(self.class_names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.class_names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.class_names)}

    def describe(self) -> dict[str, str | bool | list[str] | None]:
        """Return what a run records about its data set, for model cards and reports, as JSON-compatible values."""
        return {
            "title": self.title or self.name,
            "homepage": self.homepage,
            "terms": self.terms,
            "license_name": self.license_name,
            "split_rule": self.split_rule,
            "publish_images": self.publish_images,
            "official_size": self.official_size,
            "limits": list(self.limits),
            "class_names": list(self.class_names),
        }


def build_label_table(mapping: Mapping[int, int]) -> tuple[int, ...]:
    """Build the 256-entry label table from raw mask value → class id or `IGNORE_INDEX`; others become `INVALID`."""
    return tuple(mapping.get(value, INVALID) for value in range(256))
