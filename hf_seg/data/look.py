"""Looking at a folder of photographs and masks: what is in it, and what its masks probably mean."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets.utils import tqdm

from hf_seg.data.check import DAMAGED, size_error
from hf_seg.data.classes import MAX_CLASSES, Classes, distinct_colors
from hf_seg.data.folder import Pair
from hf_seg.data.own_images import (
    COLOURS,
    UprightImage,
    as_text,
    has_colors,
    open_stored,
    orientation,
    raw_values,
    unknown_values,
    white,
)
from hf_seg.data.spec import IGNORE_INDEX, DataError, PairError

MAX_COLORS = 4096  # of one mask; a mask with more is a photograph, or was compressed like one
SMALL_ID = 64  # ids below it are counted up from 0 or 1; above, they may be shades of grey spread over 0 to 255


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
    """What a folder holds.

    Args:
        by_color (`bool`): the masks hold colours, not ids.
        looks (`dict[Pair, Look]`): of each (image, mask) that can be used.
        errors (`list[PairError]`): what is wrong with the others.
    """

    by_color: bool
    looks: dict[Pair, Look] = field(default_factory=dict)
    errors: list[PairError] = field(default_factory=list)

    def counts(self) -> Counter[int]:
        """Pixels of each id or colour, over all masks."""
        total: Counter[int] = Counter()
        for look in self.looks.values():
            total.update(look.counts)
        return total


def look_at_pairs(pairs: list[Pair], classes: Classes | None) -> Findings:
    """Decode every image and mask once, on all cores.

    Args:
        pairs (`list[Pair]`): (image, mask) files.
        classes ([`Classes`], *optional*): what the masks mean. None: masks are read by their colours when one of
            them is not grey, else by their ids.

    Returns:
        [`Findings`]: with `classes`, masks that hold anything else count as pairs that cannot be used.
    """
    by_color = classes.by_color if classes else _any_colors([mask for _, mask in pairs])

    def look(pair: Pair) -> Look | PairError:
        return _look(pair, by_color, classes)

    findings = Findings(by_color=by_color)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for pair, found in zip(pairs, tqdm(pool.map(look, pairs), "Looking", len(pairs), unit=" pairs"), strict=True):
            if isinstance(found, PairError):
                findings.errors.append(found)
            else:
                findings.looks[pair] = found
    if classes is None and not by_color:
        _name_white(findings)
    return findings


def _name_white(findings: Findings) -> None:
    """Let the white of 1-bit masks, counted as 1, be 255 where the other masks have it so."""
    others: set[int] = set()
    for look in findings.looks.values():
        if not look.mask_kind.endswith(" 1"):
            others |= look.counts.keys()
    for look in findings.looks.values():
        if look.mask_kind.endswith(" 1") and 1 in look.counts:
            look.counts[white(others)] = look.counts.pop(1)


def _look(pair: Pair, by_color: bool, classes: Classes | None) -> Look | PairError:
    image_path, mask_path = map(str, pair)
    path = image_path
    try:
        with PIL.Image.open(path) as file:
            image_kind, note = f"{file.format} {file.mode}", orientation(file)
        image = UprightImage().decode_example({"path": path, "bytes": None})
        path = mask_path
        mask = open_stored({"path": path, "bytes": None})
        if image.size != mask.size:
            return size_error(image_path, image.size, mask_path, mask.size, upright=True, turned=note >= 5)
        counts = _count(mask, by_color, path)
        if classes:
            if mask.mode == "1" and not by_color and 1 in counts:
                counts[white(classes.meaning)] = counts.pop(1)
            unknown = {value: count for value, count in counts.items() if value not in classes.meaning}
            if unknown:
                return PairError(path, *unknown_values(unknown, by_color))
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
    except Exception as error:  # as in check
        return PairError(path, f"cannot be decoded ({type(error).__name__}: {error})", DAMAGED)


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


def _any_colors(masks: list[Path]) -> bool:
    """Whether one of the masks is of a kind that holds colours, and is not merely grey in three channels."""

    def colored(path: Path) -> bool:
        try:
            with PIL.Image.open(path) as mask:
                if not has_colors(mask):
                    return False  # as the header says: nothing has to be decoded
                raw_values(mask, by_color=False, name=str(path))
        except PairError as error:
            return error.remedy == COLOURS
        except Exception:  # a damaged file, which _look reports
            return False
        return False

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return any(pool.map(colored, masks))


def guess_classes(findings: Findings) -> dict[str, Any]:
    """Guess the content of `classes.json` from the masks: a class for each id or colour, void where that is certain.

    Two classes, 0 and another id or black and white, become background and foreground. 255 beside two or more ids that
    are all below 64 is void; so is 65535.

    Returns:
        `dict`: for `classes.json`.

    Raises:
        DataError: when the masks hold one value only, or too many to be classes.
    """
    counts = findings.counts()
    values = sorted(counts)
    what = "colours" if findings.by_color else "ids"
    void = []
    if not findings.by_color and len(values) > 2 and values[-1] in (255, 65_535) and values[-2] < SMALL_ID:
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
    colors = values if findings.by_color else _display_colors(findings, values)
    binary = len(values) == 2 and values[0] == 0 and (not findings.by_color or values[1] == 0xFFFFFF)
    names = ("background", "foreground") if binary else [f"class_{index}" for index in range(len(values))]
    classes = [
        {"name": name} | ({} if findings.by_color else {"id": value}) | {"color": as_text(color, True)}
        for name, value, color in zip(names, values, colors, strict=True)
    ]
    return {"classes": classes} | ({"ignore": void} if void else {})


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
