"""Examine the values in the masks of your own data, and guess which classes they mean."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_seg.data.check import find_other_palette
from hf_seg.data.classes import FILE_NAME, MAX_CLASSES, Classes, distinct_colors, load_classes, writable_name
from hf_seg.data.columns import MAX_ID, as_text, has_colors, is_gray, white
from hf_seg.data.pairs import StoredPair, map_pairs
from hf_seg.data.sources import folder
from hf_seg.data.sources.class_names import VOID
from hf_seg.data.spec import IGNORE_INDEX
from hf_seg.data.stored_image import open_header
from hf_seg.doctor.survey import Survey, survey_pairs
from hf_seg.problem import DataError, PairError, first

SCARCE = 0.01  # share of the labelled pixels below which a class gets a hint
VOID_NAMES = {"ignore", "ignored", "void", "unlabeled", "unlabelled"}
SPREAD = 8  # 255 is void, not a grey value, if its gap to the other ids is more than this many times their largest gap


def survey_classes(splits: Mapping[str, Dataset], root: Path) -> tuple[Survey, bool]:
    """Survey all pairs with the classes of `root/classes.json`; return the survey and whether the file gives colours.

    Raises:
        PairError: when the file gives ids, and the masks' palettes differ from file to file.
    """
    spec, column = folder.build_own_spec(root, name="init", title="", split_rule=""), load_classes(root).build_column()
    decoding = {split: dataset.cast_column("mask", column) for split, dataset in splits.items()}
    survey = survey_pairs(decoding, spec)
    for problem in survey.problems:
        if problem.code == "mask-palettes":
            raise PairError(problems=[problem])
    return survey, column.by_color


def survey_masks(splits: Mapping[str, Dataset]) -> tuple[Survey, bool]:
    """Survey all pairs without knowing the classes, and count the values in the masks; return the survey and whether
    the values are colours. They are if a mask is not grey or the palettes differ; otherwise they are ids.

    Raises:
        PairError: when the palettes differ from file to file and the other masks hold ids; or when the white of a
            1-bit mask may be 1 or 255.
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
        if not values[False] <= values[True]:  # values that no palette contains are ids, not colours
            raise other_palette
    if not by_color:  # white in 1-bit masks was counted as 1; it means 255 if the other masks hold 255
        others = set().union(*(facts.counts for facts in survey.facts if not facts.mask_kind.endswith(" 1")))
        for facts in survey.facts:
            if facts.mask_kind.endswith(" 1") and 1 in facts.counts:
                facts.counts[white(others, f"the mask of {facts.name}")] = facts.counts.pop(1)
    return survey, by_color


def _is_colored(pair: StoredPair) -> bool:
    """Whether a mask's format can hold colours and not all its pixels are grey."""
    with suppress(Exception), open_header(pair.mask) as mask:  # a damaged file, which the survey reports
        # for most masks, the header is enough to answer without decoding
        return mask.mode != "F" and has_colors(mask) and not is_gray(np.asarray(mask.convert("RGB")))
    return False


def guess_classes(name: str, survey: Survey, by_color: bool, names: Mapping[int, str] | None = None) -> dict[str, Any]:
    """Guess the content of `classes.json` from the masks: classes for ids or colours, and void ids if certain.

    Two classes without names, 0 and another id or black and white, become background and foreground. The id 255 or
    65535 is void if its name is one of `VOID_NAMES`. Without a name, it is void if there are two or more other ids and
    these are consecutive, or it is far from them (`SPREAD`). Otherwise it is a class, such as a grey value.

    Args:
        name (`str`): the data set, for messages.
        survey ([`Survey`]), by_color (`bool`): from `survey_masks`.
        names (`Mapping[int, str]`, *optional*): id or colour → name, from files of the data set. A named value is a
            class even if no mask holds it.

    Raises:
        DataError: when the masks hold fewer than two classes, more than `MAX_CLASSES`, or an id out of range.
    """
    counts = survey.pixels()
    names = {value: label for value, label in (names or {}).items() if label and (by_color or 0 <= value <= MAX_ID)}
    values = sorted(counts)
    if not by_color and (beyond := [value for value in values if not 0 <= value <= MAX_ID]):
        masks = first(facts.name for facts in survey.facts if beyond[0] in facts.counts)
        what = f"the masks of {masks} hold the id {beyond[0]}, but ids must be 0 to {MAX_ID}"
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
            f"{as_text(rarest, by_color)}, on {counts[rarest]:,} pixels), but only {MAX_CLASSES} classes are allowed"
        )
        remedy = (
            "Numbered instances are not classes. Smoothed or JPEG-compressed masks get values in between: save them "
            "as PNG, and resize them by nearest."
        )
        raise DataError(name, what, remedy, code="mask-values")
    if len(values) < 2:
        only = as_text(values[0], by_color) if values else "nothing"
        what = f"the masks hold {only} only, but training needs two classes"
        raise DataError(name, what, "Are these the right masks?", code="constant-masks")
    if len(names.keys() | set(values)) <= MAX_CLASSES:
        values = sorted(names.keys() | set(values))
    colors = values if by_color else _display_colors(survey, values)
    classes = [
        {"name": label} | ({} if by_color else {"id": value}) | {"color": as_text(color, True)}
        for label, value, color in zip(_names(values, by_color, names), values, colors, strict=True)
    ]
    return {"classes": classes} | ({"ignore": void} if void else {})


def hint_at_classes(survey: Survey, classes: Classes) -> Iterator[str]:
    """Name the classes with few pixels, if at most half of the classes are among them; and 255 as void where it may be
    the object of binary masks."""
    counts = survey.pixels()
    labelled = max(1, counts.total() - counts[IGNORE_INDEX])
    shares = {name: counts[label] / labelled for label, name in enumerate(classes.names)}
    few = [f"{name} ({share:.2%})" for name, share in shares.items() if 0 < share < SCARCE]
    if few and len(few) <= len(shares) / 2:
        yield f"  hint    below {SCARCE:.0%} of the labelled pixels: {', '.join(few)}"
        yield "          A model may ignore such rare classes. More pictures of them help, or --training.class_weights"
        yield "          balanced for `hf-seg train`."
    if classes.meaning == {0: 0, 1: 1, 255: IGNORE_INDEX} and counts[IGNORE_INDEX] > counts[1]:
        yield "  hint    255 counts as void here, and covers more pixels than 1. If it is the object of some masks,"
        yield f"          save these with 1 instead, delete {FILE_NAME}, and repeat this with --overwrite."


def _names(values: list[int], by_color: bool, given: Mapping[int, str]) -> list[str]:
    if not given and len(values) == 2 and values[0] == 0 and (not by_color or values[1] == 0xFFFFFF):
        return ["background", "foreground"]
    names = [writable_name(given.get(value, f"class_{index}")) for index, value in enumerate(values)]
    often = {name for name, count in Counter(names).items() if count > 1}  # names must be unique in classes.json
    return [
        f"{name} ({as_text(value, by_color)})" if name in often else name
        for name, value in zip(names, values, strict=True)
    ]


def _display_colors(survey: Survey, ids: list[int]) -> list[int]:
    """Colours of the ids as 0xRRGGBB: from a palette of the masks where it tells all ids apart, else generated."""
    palettes = dict.fromkeys(facts.palette for facts in survey.facts if len(facts.palette) > max(ids))
    own = ([palette[index] for index in ids] for palette in palettes)
    chosen = next((colors for colors in own if len(set(colors)) == len(ids)), None)
    chosen = chosen or itertools.islice(distinct_colors(), len(ids))
    return [red << 16 | green << 8 | blue for red, green, blue in chosen]
