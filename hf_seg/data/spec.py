"""What a data set's masks mean: class names, colours, and the table from raw mask values to class ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

IGNORE_INDEX = 255  # label of pixels that neither loss nor metric counts
INVALID = -1  # table entry of a raw value that no mask of the data set may hold


class DataError(ValueError):
    """Something is wrong with the data itself: missing, unreadable, or not what the data set promises."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The classes of a data set and how its mask files encode them.

    Args:
        name (`str`): name of the data set, as in a recipe's `data.name`.
        class_names (`tuple[str, ...]`): one name a class; the position is the class id.
        palette (`tuple[tuple[int, int, int], ...]`): one RGB colour a class, components in [0, 255].
        label_table (`tuple[int, ...]` of length 256): raw mask value → class id, `ignore_index`, or `INVALID` (-1).
        ignore_index (`int`, *optional*, defaults to 255): label of pixels that are not counted.

    Raises:
        ValueError: when the parts contradict each other (a mistake in the data set's definition, not in its files).
    """

    name: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_table: tuple[int, ...]
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        if len(self.palette) != self.num_labels or len(set(self.class_names)) != self.num_labels:
            raise ValueError(f"{self.name}: {self.num_labels} classes need as many different names and colours")
        if len(self.label_table) != 256:
            raise ValueError(f"{self.name}: the label table has {len(self.label_table)} entries instead of 256")
        strange = set(self.label_table) - {*range(self.num_labels), self.ignore_index, INVALID}
        if strange:
            raise ValueError(f"{self.name}: the label table maps to {sorted(strange)}, which are no classes")

    @property
    def num_labels(self) -> int:
        return len(self.class_names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.class_names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.class_names)}


def build_label_table(mapping: Mapping[int, int]) -> tuple[int, ...]:
    """Build the 256-entry table of a `DatasetSpec` from the raw values that may occur.

    Args:
        mapping (`Mapping[int, int]`): raw mask value in [0, 255] → class id or `IGNORE_INDEX`.

    Returns:
        `tuple[int, ...]` of length 256: `mapping`, and `INVALID` for every value it does not name.
    """
    return tuple(mapping.get(value, INVALID) for value in range(256))


def listing(items: list[str], limit: int = 10) -> str:
    """Name up to `limit` items, one a line, and say how many more there are; for error messages."""
    lines = [f"  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"  … and {len(items) - limit} more")
    return "\n".join(lines)
