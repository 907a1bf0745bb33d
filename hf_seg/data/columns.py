"""Column types for the `image` and `mask` of a table, decoded on access: as stored, upright, or to class ids."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import PIL.Image
from datasets import Image
from datasets.features.features import register_feature

from hf_seg.data.spec import INVALID
from hf_seg.data.stored_image import name_of, open_image, open_mask
from hf_seg.problem import PairError, first

MAX_ID = 65_535
WHITE = "Save it with 8 bits, or remove the one that no mask holds from classes.json."
NO_LABELS = "Save it as a PNG that holds class ids (1, 8 or 16 bits, or the indices of a palette) or colours."
COLOURS = (
    "classes.json gives the classes as ids, but these masks hold colours: give the classes as colours, or save the "
    "masks as ids. (A GIF is read by its colours, since programs renumber its palette.)"
)


@dataclass
class StoredImage(Image):
    """`datasets.Image` without its EXIF rotation: the mode RGB is for photographs, other modes or none for masks.

    Masks have no EXIF data, and those of the official data sets match the stored pixels. `datasets.Image` would rotate
    a photograph with an orientation tag but not its mask; after 180°, even their sizes would still agree.
    """

    _type: str = field(default="StoredImage", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        if isinstance(value, PIL.Image.Image):  # decoded already; datasets.Image accepts it, too
            return value
        if self.mode == "RGB":
            return open_image(value, upright=False)
        with open_mask(value) as mask:
            return mask.convert(self.mode) if self.mode and self.mode != mask.mode else mask


@dataclass
class UprightImage(Image):
    """A photograph as viewers and annotation programs show it: RGB, rotated by its EXIF orientation.

    Args:
        value_range (`list[float]`, *optional*): as in `open_image`.
    """

    value_range: list[float] | None = None
    _type: str = field(default="UprightImage", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        if isinstance(value, PIL.Image.Image):
            return value
        return open_image(value, upright=True, value_range=self.value_range)


@dataclass
class ClassMask(Image):
    """A mask that decodes to class ids (mode L; 255 is ignored), from the ids or colours in its file.

    Args:
        by_color (`bool`): read the file's colours, not its ids.
        values (`list[int]`): allowed values of the masks: ids in [0, 65535], or colours as 0xRRGGBB.
        labels (`list[int]`): the class id of each value, or 255 (ignored).
    """

    by_color: bool = False
    values: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    _type: str = field(default="ClassMask", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        if isinstance(value, PIL.Image.Image):
            return value
        with open_mask(value) as mask:
            raw = raw_values(mask, by_color=self.by_color, name=name_of(value))
        if raw.dtype == bool:
            raw = raw * np.uint8(white(self.values, name_of(value)) if raw.any() else 0)
        table = _table(self.by_color, tuple(self.values), tuple(self.labels))
        # 32-bit ids outside the table get its last entry, which is always INVALID
        labels = table[raw if raw.dtype.kind == "u" else raw.clip(-1, len(table) - 1)]
        if (labels == INVALID).any():
            unknown, counts = np.unique(raw[labels == INVALID], return_counts=True)
            counted = dict(zip(unknown.tolist(), counts.tolist(), strict=True))
            raise unknown_values(name_of(value), counted, self.by_color)
        return PIL.Image.fromarray(labels.astype(np.uint8))


def unknown_values(name: str, counts: dict[int, int], by_color: bool) -> PairError:
    """Build the error for a mask with values that classes.json does not list. `counts`: value → number of pixels."""
    most = sorted(counts, key=lambda value: -counts[value])
    named = first(f"{as_text(value, by_color)} ({counts[value]:,} pixels)" for value in most)
    remedy = (
        f"Each {'colour' if by_color else 'id'} in a mask must be in classes.json, for a class, under label_map or "
        "under ignore: add what is missing, or correct the masks."
    )
    if len(counts) > 20:
        remedy += " So many come from JPEG compression or smoothing: save masks as PNG, and resize them by nearest."
    return PairError(name, f"the mask holds {named}", remedy, code="mask-values")


def raw_values(mask: PIL.Image.Image, *, by_color: bool, name: str) -> np.ndarray:
    """Return the values of a mask's pixels as its file stores them, without transparency.

    Returns:
        `np.ndarray` of shape `(height, width)`: ids (bool for 1-bit masks, uint8, uint16 or int32), or colours as
        0xRRGGBB (int32).

    Raises:
        PairError: when the mask does not hold values of that kind.
    """
    if mask.mode == "F" or (by_color and mask.mode.startswith("I")):
        raise PairError(name, f"the mask has the mode {mask.mode}", NO_LABELS, code="mask-kind")
    if not by_color and not has_colors(mask):
        ids = np.asarray(mask)
        return ids if ids.ndim == 2 else ids[..., 0]  # LA and PA: the second channel is transparency
    pixels = np.asarray(mask.convert("RGB"))
    if by_color:
        red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
        return red << 16 | green << 8 | blue
    if not is_gray(pixels):
        raise PairError(name, "the mask holds colours", COLOURS, code="mask-kind")
    return pixels[..., 0]


def is_gray(pixels: np.ndarray) -> bool:
    """Whether RGB pixels `(height, width, 3)` have three equal channels, so that they may be ids."""
    return bool((pixels == pixels[..., :1]).all())


def has_colors(mask: PIL.Image.Image) -> bool:
    """Whether a mask's file holds colours, not ids. A GIF holds colours: its palette indices mean nothing."""
    return mask.format == "GIF" or not (mask.mode in ("1", "L", "LA", "P", "PA") or mask.mode.startswith("I"))


def white(values: Collection[int], name: str) -> int:
    """Return the id of white in a 1-bit mask: 255 if it is in `values`, else 1; raise a PairError if both are."""
    if 1 in values and 255 in values:
        what = "the mask has 1 bit per pixel, and its white could be 1 or 255, which both have a meaning"
        raise PairError(name, what, WHITE, code="mask-kind")
    return 255 if 255 in values else 1


def as_text(value: int, by_color: bool) -> str:
    return f"#{value:06x}" if by_color else str(value)


@lru_cache(maxsize=4)  # a table of colours takes 32 MB; looking pixels up in it is the fastest way
def _table(by_color: bool, values: tuple[int, ...], labels: tuple[int, ...]) -> np.ndarray:
    table = np.full((2**24 if by_color else MAX_ID + 1) + 1, INVALID, np.int16)
    table[list(values)] = labels
    return table


with warnings.catch_warnings():
    # Registered, so that tables that `datasets` writes and reads again (map, save_to_disk) keep these types. The
    # warning that this function is experimental is of no use to users.
    warnings.simplefilter("ignore", UserWarning)
    for column in (StoredImage, UprightImage, ClassMask):
        register_feature(column, column.__name__)
