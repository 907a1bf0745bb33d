"""Looking at photographs and masks: what there is, and what the masks probably mean."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset

from hf_seg.data.classes import MAX_CLASSES, Classes, distinct_colors, writable_name
from hf_seg.data.columns import (
    COLOURS,
    UprightImage,
    as_text,
    has_colors,
    raw_values,
    unknown_values,
    white,
)
from hf_seg.data.pairs import StoredPair, map_pairs, size_error
from hf_seg.data.palettes import find_other_palette
from hf_seg.data.spec import IGNORE_INDEX
from hf_seg.data.stored_image import open_header, open_mask, orientation
from hf_seg.problem import DataError, PairError

MAX_COLORS = 4096  # of one mask; a mask with more is a photograph, or was compressed like one
SPREAD = 8  # so many times as far from the other ids as these are from each other, 255 is void and no shade of grey


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one pair is like.

    Args:
        size (`tuple[int, int]`): width and height of the upright image.
        image_kind (`str`), mask_kind (`str`): format and mode, such as `JPEG RGB`.
        turned (`bool`): the image is stored lying on its side or on its head.
        counts (`dict[int, int]`): what the mask holds, an id or a colour as 0xRRGGBB → pixels.
        palette (`tuple[tuple[int, int, int], ...]`): the colours of a palette mask, by id.
    """

    size: tuple[int, int]
    image_kind: str
    mask_kind: str
    turned: bool
    counts: dict[int, int]
    palette: tuple[tuple[int, int, int], ...] = ()


@dataclass(kw_only=True)
class Findings:
    """What there is.

    Args:
        by_color (`bool`): the masks hold colours, not ids.
        looks (`dict[tuple[str, int], Look]`): of each pair that can be used, by split and row.
        errors (`list[PairError]`): what is wrong with the others.
    """

    by_color: bool
    looks: dict[tuple[str, int], Look] = field(default_factory=dict)
    errors: list[PairError] = field(default_factory=list)

    def counts(self) -> Counter[int]:
        """Pixels of each id or colour, over all masks."""
        total: Counter[int] = Counter()
        for look in self.looks.values():
            total.update(look.counts)
        return total


def look_at_pairs(splits: Mapping[str, Dataset], classes: Classes | None) -> Findings:
    """Decode every image and mask once, on all cores.

    Args:
        splits (`Mapping[str, Dataset]`): tables with the columns `image` and `mask`, pictures as stored.
        classes ([`Classes`], *optional*): what the masks mean. None: masks are read by their colours when one of
            them is not grey, or when their palettes differ, else by their ids.

    Returns:
        [`Findings`]: with `classes`, masks that hold anything else count as pairs that cannot be used.

    Raises:
        PairError: when the masks' palettes differ from file to file, and `classes` gives ids, or other masks hold ids.
    """
    colored = map_pairs(_is_colored, splits, desc="Looking for colours", disable_bar=True)
    by_color = classes.by_color if classes else any(found for _, found in colored)
    other_palette = None if by_color else find_other_palette(splits)
    if other_palette and classes:
        raise other_palette
    findings = Findings(by_color=by_color or other_palette is not None)
    for pair, found in map_pairs(lambda pair: _look(pair, findings.by_color, classes), splits, desc="Looking"):
        if isinstance(found, PairError):
            findings.errors.append(found)
        else:
            findings.looks[pair.split, pair.index] = found
    if other_palette and _has_other_grays(findings):
        raise other_palette
    if classes is None and not findings.by_color:
        _name_white(findings)
    return findings


def _has_other_grays(findings: Findings) -> bool:
    """Whether masks without palette hold shades of grey that no palette has: these are ids, and no colours."""
    colors: dict[bool, set[int]] = {True: set(), False: set()}
    for look in findings.looks.values():
        colors[bool(look.palette)] |= look.counts.keys()
    return not colors[False] <= colors[True]


def _name_white(findings: Findings) -> None:
    """Let the white of 1-bit masks, counted as 1, be 255 where the other masks have it so."""
    others: set[int] = set()
    for look in findings.looks.values():
        if not look.mask_kind.endswith(" 1"):
            others |= look.counts.keys()
    for look in findings.looks.values():
        if look.mask_kind.endswith(" 1") and 1 in look.counts:
            look.counts[white(others)] = look.counts.pop(1)


def _look(pair: StoredPair, by_color: bool, classes: Classes | None) -> Look | PairError:
    name = pair.mask_name
    try:
        image = UprightImage().decode_example(pair.image | {"path": pair.image_name})  # by which its errors name it
        with open_header(pair.image) as file:
            image_kind, note = f"{file.format} {file.mode}", orientation(file)
        with open_mask(pair.mask | {"path": name}) as mask:
            if image.size != mask.size:
                return size_error(pair.image_name, image.size, name, mask.size, upright=True, turned=note >= 5)
            counts = _count(mask, by_color, name)
            if classes:
                if mask.mode == "1" and not by_color and 1 in counts:
                    counts[white(classes.meaning)] = counts.pop(1)
                unknown = {value: count for value, count in counts.items() if value not in classes.meaning}
                if unknown:
                    return PairError(name, *unknown_values(unknown, by_color))
            palette = mask.getpalette() if mask.mode == "P" else None
            return Look(
                size=image.size,
                image_kind=image_kind,
                mask_kind=f"{mask.format} {mask.mode}",
                turned=note > 1,
                counts=counts,
                palette=tuple(zip(*[iter(palette or ())] * 3, strict=False)),
            )
    except PairError as error:
        return error


def _count(mask: PIL.Image.Image, by_color: bool, name: str) -> dict[int, int]:
    """Pixels of each value; `getcolors` counts in C, many times faster than sorting the pixels."""
    if by_color and not mask.mode.startswith(("I", "F")):
        colors = mask.convert("RGB").getcolors(MAX_COLORS)
        if colors is None:
            remedy = "A mask has one plain colour a class; JPEG compression and smoothing make thousands of them."
            raise PairError(name, f"the mask holds more than {MAX_COLORS:,} colours", remedy)
        return {red << 16 | green << 8 | blue: count for count, (red, green, blue) in colors}
    raw = raw_values(mask, by_color=by_color, name=name)
    values, counts = np.unique(raw, return_counts=True)
    return dict(zip(map(int, values), map(int, counts), strict=True))


def _is_colored(pair: StoredPair) -> bool:
    """Whether a mask is of a kind that holds colours, and is not merely grey in three channels."""
    try:
        with open_header(pair.mask) as mask:
            if not has_colors(mask):
                return False  # as the header says: nothing has to be decoded
            raw_values(mask, by_color=False, name=pair.mask_name)
    except PairError as error:
        return error.problem.remedy == COLOURS
    except Exception:  # a damaged file, which _look reports
        return False
    return False


def guess_classes(findings: Findings, names: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Guess the content of `classes.json` from the masks: a class for each id or colour, void where that is certain.

    Two classes, 0 and another id or black and white, become background and foreground. 255, or 65535, is void beside
    two or more ids without a gap, or when it is far from them (`SPREAD`); shades of grey are classes.

    Args:
        findings ([`Findings`]): from `look_at_pairs`.
        names (`Mapping[int, str]`, *optional*): of ids or colours, as a data set brings them along. What has a name is
            a class even if no mask holds it.

    Returns:
        `dict`: for `classes.json`.

    Raises:
        DataError: when the masks hold one value only, or too many to be classes.
    """
    counts, names = findings.counts(), names or {}
    values = sorted(counts)
    what = "colours" if findings.by_color else "ids"
    void = []
    if not findings.by_color and len(values) > 2 and values[-1] in (255, 65_535) and values[-1] not in names:
        *steps, last = (after - before for before, after in itertools.pairwise(values))
        if last > (1 if max(steps) == 1 else SPREAD * max(steps)):
            void = [values.pop()]
    if len(values) > MAX_CLASSES:
        rarest = min(values, key=counts.__getitem__)
        raise DataError(
            f"the masks hold {len(values):,} different {what} (the rarest, {as_text(rarest, findings.by_color)}, on "
            f"{counts[rarest]:,} pixels), and {MAX_CLASSES} classes are the most. Numbered instances are no classes; "
            "smoothed or JPEG-compressed masks get values in between: save them as PNG, resized by nearest."
        )
    if len(values) < 2:
        only = as_text(values[0], findings.by_color) if values else "nothing"
        raise DataError(f"the masks hold {only} only, and it takes two classes to train. Are these the right masks?")
    if len(names.keys() | set(values)) <= MAX_CLASSES:
        values = sorted(names.keys() | set(values))
    colors = values if findings.by_color else _display_colors(findings, values)
    chosen = _names(values, findings.by_color, names)
    classes = [
        {"name": name} | ({} if findings.by_color else {"id": value}) | {"color": as_text(color, True)}
        for name, value, color in zip(chosen, values, colors, strict=True)
    ]
    return {"classes": classes} | ({"ignore": void} if void else {})


def _names(values: list[int], by_color: bool, given: Mapping[int, str]) -> list[str]:
    if not given and len(values) == 2 and values[0] == 0 and (not by_color or values[1] == 0xFFFFFF):
        return ["background", "foreground"]
    names = [writable_name(given.get(value, f"class_{index}")) for index, value in enumerate(values)]
    often = {name for name, count in Counter(names).items() if count > 1}  # classes.json wants different ones
    return [f"{name} ({value})" if name in often else name for name, value in zip(names, values, strict=True)]


def _display_colors(findings: Findings, ids: list[int]) -> list[int]:
    """The masks' own palette where they have one that tells the classes apart, else generated colours."""
    for palette in dict.fromkeys(look.palette for look in findings.looks.values() if look.palette):
        if len(palette) > max(ids) and len({palette[index] for index in ids}) == len(ids):
            chosen = [palette[index] for index in ids]
            break
    else:
        chosen = list(itertools.islice(distinct_colors(), len(ids)))
    return [red << 16 | green << 8 | blue for red, green, blue in chosen]


def pixel_shares(findings: Findings, classes: Classes) -> list[tuple[str, str, float, int]]:
    """Of each class, and of what is ignored: what it is in the masks, its name, share of all pixels, pictures."""
    counts = findings.counts()
    total = max(1, counts.total())
    rows = []
    for index, name in [*enumerate(classes.names), (IGNORE_INDEX, "(ignored)")]:
        values = [value for value, label in classes.meaning.items() if label == index]
        if values:
            shown = ", ".join(as_text(value, classes.by_color) for value in values)
            seen = sum(not look.counts.keys().isdisjoint(values) for look in findings.looks.values())
            rows.append((shown, name, sum(counts[value] for value in values) / total, seen))
    return rows
