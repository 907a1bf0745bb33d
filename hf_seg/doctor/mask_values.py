"""What the masks of your own data hold, and which classes that probably means."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_seg.data.check import find_other_palette
from hf_seg.data.classes import MAX_CLASSES, distinct_colors, load_classes, writable_name
from hf_seg.data.columns import MAX_ID, as_text, has_colors, is_gray, white
from hf_seg.data.pairs import StoredPair, map_pairs
from hf_seg.data.sources import folder
from hf_seg.data.sources.class_names import VOID
from hf_seg.data.stored_image import open_header
from hf_seg.doctor.survey import Survey, survey_pairs
from hf_seg.problem import DataError, PairError, first

VOID_NAMES = {"ignore", "ignored", "void", "unlabeled", "unlabelled"}
SPREAD = 8  # so many times as far from the other ids as these are from each other, 255 is void and no shade of grey


def survey_classes(splits: Mapping[str, Dataset], root: Path) -> tuple[Survey, bool]:
    """Look at all pairs by `root/classes.json`; returns also whether it gives colours. Where it gives ids, palettes
    that differ from file to file are refused."""
    spec, column = folder.build_own_spec(root, name="init", title="", split_rule=""), load_classes(root).build_column()
    decoding = {split: dataset.cast_column("mask", column) for split, dataset in splits.items()}
    survey = survey_pairs(decoding, spec)
    for problem in survey.problems:
        if problem.code == "mask-palettes":
            raise PairError(problems=[problem])
    return survey, column.by_color


def survey_masks(splits: Mapping[str, Dataset]) -> tuple[Survey, bool]:
    """Look at all pairs where the masks' meaning is not known, and count what they hold; returns also whether that is
    colours: so it is when a mask is not grey, or the palettes differ.

    Raises:
        PairError: when the palettes differ from file to file, and other masks hold ids.
    """
    colored = map_pairs(_is_colored, splits, desc="Looking for colours", disable_bar=True)
    by_color = any(found for _, found in colored)
    other_palette = None if by_color else find_other_palette(splits)
    by_color = by_color or other_palette is not None
    survey = survey_pairs(splits, None, by_color=by_color)
    if other_palette:
        values: dict[bool, set[int]] = {True: set(), False: set()}
        for facts in survey.facts:
            values[bool(facts.palette)] |= facts.counts.keys()
        if not values[False] <= values[True]:  # shades of grey that no palette has are ids, and no colours
            raise other_palette
    if not by_color:  # the white of 1-bit masks, counted as 1, is 255 where the other masks have it so
        others = set().union(*(facts.counts for facts in survey.facts if not facts.mask_kind.endswith(" 1")))
        for facts in survey.facts:
            if facts.mask_kind.endswith(" 1") and 1 in facts.counts:
                facts.counts[white(others, f"the mask of {facts.name}")] = facts.counts.pop(1)
    return survey, by_color


def _is_colored(pair: StoredPair) -> bool:
    """Whether a mask is of a kind that holds colours, and is not merely grey in three channels."""
    with suppress(Exception), open_header(pair.mask) as mask:  # of a damaged file, which the survey reports
        # of most, the header says that there is nothing to decode for this
        return mask.mode != "F" and has_colors(mask) and not is_gray(np.asarray(mask.convert("RGB")))
    return False


def guess_classes(name: str, survey: Survey, by_color: bool, names: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Guess the content of `classes.json` from the masks: a class for each id or colour, void where that is certain.

    Two classes, 0 and another id or black and white, become background and foreground. 255, or 65535, is void when its
    name is one of `VOID_NAMES`; without a name, beside two or more ids without a gap, or when it is far from them
    (`SPREAD`): shades of grey are classes.

    Args:
        name (`str`): the data set, for messages.
        survey ([`Survey`]), by_color (`bool`): from `survey_masks`.
        names (`Mapping[int, str]`, *optional*): of ids or colours, as a data set brings them along. What has a name is
            a class even if no mask holds it.

    Raises:
        DataError: when the masks hold one value only, or too many to be classes.
    """
    counts = survey.pixels()
    names = {value: label for value, label in (names or {}).items() if label and (by_color or 0 <= value <= MAX_ID)}
    values = sorted(counts)
    if not by_color and (beyond := [value for value in values if not 0 <= value <= MAX_ID]):
        masks = first(facts.name for facts in survey.facts if beyond[0] in facts.counts)
        what = f"the masks hold the id {beyond[0]}, and ids are 0 to {MAX_ID}: those of {masks}"
        raise DataError(name, what, "write void as 255 and classes as small ids", code="mask-values")
    called_void = {value for value in VOID & names.keys() if not by_color and names[value].lower() in VOID_NAMES}
    names = {value: label for value, label in names.items() if value not in called_void}
    void = [value for value in values if value in called_void]
    values = [value for value in values if value not in called_void]
    if not by_color and len(values) > 2 and values[-1] in VOID - names.keys():
        *steps, last = (after - before for before, after in itertools.pairwise(values))
        if last > (1 if max(steps) == 1 else SPREAD * max(steps)):
            void.append(values.pop())
    if len(values) > MAX_CLASSES:
        rarest = min(values, key=counts.__getitem__)
        what = (
            f"the masks hold {len(values):,} different {'colours' if by_color else 'ids'} (the rarest, "
            f"{as_text(rarest, by_color)}, on {counts[rarest]:,} pixels), and {MAX_CLASSES} classes are the most"
        )
        remedy = (
            "Numbered instances are no classes; smoothed or JPEG-compressed masks get values in between: save them as "
            "PNG, resized by nearest."
        )
        raise DataError(name, what, remedy, code="mask-values")
    if len(values) < 2:
        only = as_text(values[0], by_color) if values else "nothing"
        what = f"the masks hold {only} only, and training needs two classes"
        raise DataError(name, what, "Are these the right masks?", code="constant-masks")
    if len(names.keys() | set(values)) <= MAX_CLASSES:
        values = sorted(names.keys() | set(values))
    colors = values if by_color else _display_colors(survey, values)
    classes = [
        {"name": label} | ({} if by_color else {"id": value}) | {"color": as_text(color, True)}
        for label, value, color in zip(_names(values, by_color, names), values, colors, strict=True)
    ]
    return {"classes": classes} | ({"ignore": void} if void else {})


def _names(values: list[int], by_color: bool, given: Mapping[int, str]) -> list[str]:
    if not given and len(values) == 2 and values[0] == 0 and (not by_color or values[1] == 0xFFFFFF):
        return ["background", "foreground"]
    names = [writable_name(given.get(value, f"class_{index}")) for index, value in enumerate(values)]
    often = {name for name, count in Counter(names).items() if count > 1}  # classes.json wants different ones
    return [
        f"{name} ({as_text(value, by_color)})" if name in often else name
        for name, value in zip(names, values, strict=True)
    ]


def _display_colors(survey: Survey, ids: list[int]) -> list[int]:
    """The masks' own palette where they have one that tells the classes apart, else generated colours."""
    palettes = dict.fromkeys(facts.palette for facts in survey.facts if len(facts.palette) > max(ids))
    own = ([palette[index] for index in ids] for palette in palettes)
    chosen = next((colors for colors in own if len(set(colors)) == len(ids)), None)
    chosen = chosen or itertools.islice(distinct_colors(), len(ids))
    return [red << 16 | green << 8 | blue for red, green, blue in chosen]
