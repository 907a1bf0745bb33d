"""A whole data set before a model trains on it: every pair, what its splits hold, and what is there twice."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import DatasetDict

from hf_seg.data.gather import as_finding
from hf_seg.data.pairs import StoredPair, map_pairs
from hf_seg.data.palettes import find_other_palette, reads_ids
from hf_seg.data.spec import DatasetSpec
from hf_seg.doctor.duplicates import SIDE, find_duplicates, is_flat
from hf_seg.doctor.survey_pair import PairFacts, examine_pair
from hf_seg.problem import Level, Problem

RARE = 0.001  # share of a split's labelled pixels
MOSTLY = 0.5  # share of a split's pixels
MAX_DUPLICATES = 10_000  # a film from one place has as many pairs as it has frames, squared
# where the meaning of masks is not known: any value will do
ANYTHING = DatasetSpec(name="unknown", class_names=("anything",), palette=((0, 0, 0),), label_table=(0,) * 256)


@dataclass(kw_only=True)
class SplitFacts:
    """What a split holds.

    Args:
        pairs (`int`), usable (`int`): how many there are, and how many can be used.
        pixels (`Counter[int]`): class id (255: ignored) → pixels.
        pictures (`Counter[int]`): class id → pairs in which it occurs.
    """

    pairs: int = 0
    usable: int = 0
    pixels: Counter[int] = field(default_factory=Counter)
    pictures: Counter[int] = field(default_factory=Counter)


@dataclass(kw_only=True)
class Examination:
    """What was found.

    Args:
        findings (`list[Problem]`): of pairs, in their order, then of splits, then of duplicates.
        splits (`dict[str, SplitFacts]`): by name.
    """

    findings: list[Problem]
    splits: dict[str, SplitFacts]


def examine(
    splits: DatasetDict,
    spec: DatasetSpec | None,
    *,
    place: str,
    image_size: int,
    drop: bool = False,
    split_known: bool = True,
    disable_bar: bool | None = False,
) -> Examination:
    """Decode every pair once, on all cores, and look at what they are together. Only small things are kept of each.

    Args:
        splits (`DatasetDict`): columns `image` and `mask`, as `load_splits` gives them.
        spec (`DatasetSpec`, *optional*): what the masks mean; None: not known, so that only their files are looked at.
        place (`str`): the data set, for messages.
        image_size (`int`): the side that pictures are resized to.
        drop (`bool`): pairs that cannot be used are left out, instead of refused.
        split_known (`bool`): the splits are those of a run, not merely a heap.
        disable_bar (`bool`, *optional*): as tqdm's `disable`; None: a bar on terminals only.
    """
    examination = Examination(findings=[], splits={name: SplitFacts() for name in splits})
    if reads_ids(splits) and (error := find_other_palette(splits, disable_bar=disable_bar)):
        examination.findings.append(as_finding(error, "error"))
    names, split_of, thumbnails, small = [], [], [], []
    bad: Level = "warning" if drop else "error"
    for pair, facts in _examine_pairs(splits, spec or ANYTHING, bad, disable_bar):
        examination.findings += facts.findings
        split = examination.splits[pair.split]
        split.pairs += 1
        if facts.size is None:
            continue
        split.usable += 1
        split.pixels.update(facts.counts)
        split.pictures.update(facts.counts.keys())
        if min(facts.size) < image_size:
            small.append(facts.size)
        names.append(pair.image_name)
        split_of.append(pair.split)
        thumbnails.append(facts.thumbnail)
    whole = np.stack(thumbnails) if thumbnails else np.empty((0, SIDE, SIDE), np.uint8)
    report = _Report(examination.findings, place)
    report.empty_splits(examination.splits, drop, split_known)
    if small:
        report.small(small, len(names), image_size)
    if spec:
        report.classes(examination.splits, spec, split_known)
    report.flat([name for name, flat in zip(names, is_flat(whole), strict=True) if flat])
    report.duplicates(whole, names, split_of, split_known)
    return examination


def _examine_pairs(
    splits: DatasetDict, spec: DatasetSpec, bad: Level, disable_bar: bool | None
) -> Iterator[tuple[StoredPair, PairFacts]]:
    def look(pair: StoredPair) -> PairFacts:
        return examine_pair(pair, splits[pair.split].features, spec, bad)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's are findings of ours
        yield from map_pairs(look, splits, desc="Examining", disable_bar=disable_bar)


class _Report:
    """Findings about the whole."""

    def __init__(self, findings: list[Problem], place: str):
        self.findings, self.place = findings, place

    def add(self, level: Level, code: str, what: str, remedy: str, file: str | None = None) -> None:
        self.findings.append(Problem(level=level, code=code, place=file or self.place, what=what, remedy=remedy))

    def empty_splits(self, splits: dict[str, SplitFacts], drop: bool, split_known: bool) -> None:
        for name, split in splits.items():
            if split_known and not split.usable and (drop or not split.pairs):
                remedy = "Each of train, validation and test needs one."
                self.add("error", "empty-split", f"the {name} split holds no pair that can be used", remedy)

    def small(self, sizes: list[tuple[int, int]], total: int, image_size: int) -> None:
        width, height = min(sizes, key=min)
        what = f"{len(sizes):,} of {total:,} images have a side below image_size {image_size} (the smallest is "
        remedy = "They are enlarged, which costs time and adds nothing: a smaller image_size may do."
        self.add("note", "small-image", f"{what}{width}×{height} pixels)", remedy)

    def classes(self, splits: dict[str, SplitFacts], spec: DatasetSpec, split_known: bool) -> None:
        filled = {name: split for name, split in splits.items() if split.usable}
        seen = set().union(*(split.pixels for split in filled.values())) - {spec.ignore_index}
        if len(seen) == 1:
            (only,) = seen
            what = f"all masks hold one class only, {spec.class_names[only]}"
            remedy = "Nothing can be learnt from that. Are these the right masks, and the right classes.json?"
            self.add("warning", "constant-masks", what, remedy)
            return
        for name, split in filled.items():
            pixels = split.pixels.total()
            ignored = split.pixels[spec.ignore_index]
            if ignored > MOSTLY * pixels:
                what = f"{ignored / pixels:.1%} of the pixels of {name} are ignored"
                self.add("warning", "mostly-ignored", what, "Is something under ignore that should be a class?")
            if not split_known:
                continue
            absent = [label for index, label in enumerate(spec.class_names) if not split.pixels[index]]
            if absent:
                listed = f"{name} holds no pixel of {', '.join(absent)}"
                if name == "train":
                    remedy = "What is not in train cannot be learnt: add such pairs, or take the class out."
                else:
                    remedy = f"mIoU of {name} leaves such classes out: move or add pairs to have them counted."
                self.add("warning", "absent-class", listed, remedy)
            shares = {label: split.pixels[index] / max(1, pixels - ignored) for index, label in spec.id2label.items()}
            rare = [f"{label} ({share:.3%})" for label, share in shares.items() if 0 < share < RARE]
            if rare and name == "train":
                what = f"below {RARE:.1%} of the labelled pixels of train: {', '.join(rare)}"
                remedy = "Such a class may never be predicted, and counts as much in mIoU as every other."
                self.add("note", "rare-class", what, remedy)

    def flat(self, names: list[str]) -> None:
        for name in names:
            self.add("warning", "blank-image", "shows next to nothing", "Remove it, or get the file again.", name)

    def duplicates(self, thumbnails: np.ndarray, names: list[str], split_of: list[str], split_known: bool) -> None:
        found = list(itertools.islice(find_duplicates(thumbnails), MAX_DUPLICATES + 1))
        if len(found) > MAX_DUPLICATES:
            found.pop()
            what = (
                f"there are more than {MAX_DUPLICATES:,} pairs of photographs that look the same; the rest is left out"
            )
            remedy = "Frames of a film? Whole films belong into one split, and a frame in many is enough."
            self.add("warning", "many-duplicates", what, remedy)
        for first, second, similarity in found:
            a, b = split_of[first], split_of[second]
            if a != b:
                level, code, where = "warning", "duplicate-across-splits", f"; this one is in {b}, that one in {a}"
                remedy = (
                    "What was trained on is scored: keep one of the two, or both in the same split. Where the split "
                    "is official, leave it, and say so beside the score."
                )
            else:
                level, code, where = "note", "duplicate-within-split", f"; both are in {a}" if split_known else ""
                remedy = "It counts twice. Before a split is drawn again, keep one of the two."
            what = f"looks like the same photograph as {names[first]}{where} (similarity {similarity:.2f})"
            self.add(level, code, what, remedy, names[second])


def describe(examination: Examination, spec: DatasetSpec | None) -> dict[str, Any]:
    """The numbers of each split, ready for JSON.

    Args:
        examination ([`Examination`]): of a data set.
        spec (`DatasetSpec`, *optional*): its classes.

    Returns:
        `dict`: split → `pairs`, `usable`, and with the spec `ignored_share` (of all pixels) and `class_shares` (class
        name → share of the pixels that are not ignored).
    """
    described = {}
    for name, split in examination.splits.items():
        described[name] = {"pairs": split.pairs, "usable": split.usable}
        if spec:
            pixels, ignored = split.pixels.total(), split.pixels[spec.ignore_index]
            labelled = max(1, pixels - ignored)
            described[name]["ignored_share"] = ignored / max(1, pixels)
            described[name]["class_shares"] = {
                label: split.pixels[index] / labelled for index, label in spec.id2label.items()
            }
    return described
