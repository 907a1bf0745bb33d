"""Palettes that differ from file to file: there, an index is no class id."""

from __future__ import annotations

from collections.abc import Mapping

import PIL.Image
from datasets import Dataset

from hf_seg.data.columns import ClassMask, as_text, has_colors
from hf_seg.data.pairs import StoredPair, map_pairs
from hf_seg.data.stored_image import open_header, open_mask
from hf_seg.problem import PairError

OTHER_PALETTE = (
    "Programs that make a palette for each file (pngquant, GIMP, “save for web”) give an index another meaning in "
    "each: in classes.json, give the classes by their colours (without one, `hf-seg init` finds them); or save all "
    "masks with one palette."
)


def reads_ids(splits: Mapping[str, Dataset]) -> bool:
    """Whether the masks are decoded by `classes.json`, and it gives ids."""
    columns = [dataset.features["mask"] for dataset in splits.values()]
    return any(isinstance(column, ClassMask) and not column.by_color for column in columns)


def find_other_palette(splits: Mapping[str, Dataset], *, disable_bar: bool | None = False) -> PairError | None:
    """Find two masks whose palettes give different colours to an index that both hold.

    The headers are read; where all palettes are the same, as mostly, no mask is decoded.

    Args:
        splits (`Mapping[str, Dataset]`): columns `image` and `mask`.
        disable_bar (`bool`, *optional*): as tqdm's `disable`.

    Returns:
        [`PairError`], *optional*: names both.
    """
    bar = {"desc": "Comparing palettes", "disable_bar": disable_bar}
    if len({palette for _, palette in map_pairs(_stored_palette, splits, **bar)} - {None}) < 2:
        return None
    seen: dict[int, tuple[int, str]] = {}  # index → the colour that it has first, and in which file
    for pair, colors in map_pairs(_used_colors, splits, **bar):
        for index, color in colors.items():
            first, file = seen.setdefault(index, (color, pair.mask_name))
            if color != first:
                here, there = as_text(color, True), as_text(first, True)
                reason = f"index {index} of the mask's palette is {here}, but {there} in {file}"
                return PairError(pair.mask_name, reason, OTHER_PALETTE)
    return None


def _stored_palette(pair: StoredPair) -> tuple[str, bytes] | None:
    try:
        with open_header(pair.mask) as mask:
            return (mask.palette.rawmode, bytes(mask.palette.palette)) if _has_palette(mask) else None
    except Exception:  # a damaged file, which decoding reports
        return None


def _used_colors(pair: StoredPair) -> dict[int, int]:
    try:
        with open_mask(pair.mask) as mask:
            if not _has_palette(mask):
                return {}
            palette = mask.getpalette()
            used = [index for index, count in enumerate(mask.getchannel(0).histogram()) if count]
    except PairError:
        return {}
    return {index: int.from_bytes(palette[3 * index : 3 * index + 3]) for index in used if 3 * index < len(palette)}


def _has_palette(mask: PIL.Image.Image) -> bool:
    return mask.mode in ("P", "PA") and not has_colors(mask)
