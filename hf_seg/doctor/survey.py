"""Examine every pair of a data set once, for the doctor and `hf-seg init`, and find problems of splits and classes."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, Features

from hf_seg.data import NO_PAIR
from hf_seg.data.check import find_other_palette, reads_ids
from hf_seg.data.columns import UprightImage, raw_values
from hf_seg.data.pairs import StoredPair, check_sizes, decode_pair, map_pairs
from hf_seg.data.spec import DatasetSpec
from hf_seg.data.stored_image import Stored, is_deep, open_header, open_mask, orientation
from hf_seg.doctor.duplicates import find_duplicates, is_flat, thumbnail
from hf_seg.problem import Level, PairError, Problem

LONG = 4  # longer side ÷ shorter side; from this ratio on, resizing to a square distorts a picture too much
RARE = 0.001  # share of a split's labelled pixels below which a class is rare
MOSTLY = 0.5  # share of a split's pixels above which the split is mostly ignored
MAX_COLORS = 4096  # per mask; a mask with more is a photograph or was compressed like one
MAX_DUPLICATES = 10_000  # pairs reported; in a film from one place, nearly every pair of frames is one


@dataclass(kw_only=True, slots=True)
class PairFacts:
    """What is kept of one examined pair, without its pixels."""

    name: str  # the image's path, or a name for messages
    problems: list[Problem] = field(default_factory=list)  # with an error if the pair cannot be used
    size: tuple[int, int] | None = None  # width and height; None if the pair cannot be used
    image_kind: str = ""  # format and mode, such as `JPEG RGB`
    mask_kind: str = ""
    turned: bool = False  # an EXIF note says that the stored image is rotated or mirrored
    gray: bool = False  # the image has one channel
    # class id (255: ignored) → pixels; if the classes are not known, mask id or colour as 0xRRGGBB → pixels
    counts: dict[int, int] = field(default_factory=dict)
    palette: tuple[tuple[int, int, int], ...] = ()  # the colours of a palette mask, by id
    thumbnail: np.ndarray | None = None  # uint8 of shape (16, 16)


@dataclass(kw_only=True)
class Survey:
    """The facts of all usable pairs of a data set, and the problems of all its pairs."""

    problems: list[Problem] = field(default_factory=list)  # of all pairs, in their order
    usable: dict[str, dict[int, PairFacts]] = field(default_factory=dict)  # split → row → facts of the pair
    pair_counts: dict[str, int] = field(default_factory=dict)  # split → number of pairs, usable or not

    @property
    def facts(self) -> list[PairFacts]:
        return [facts for rows in self.usable.values() for facts in rows.values()]

    def pixels(self, split: str | None = None) -> Counter[int]:
        """The number of pixels of each class, id or colour, in one split or in all."""
        total: Counter[int] = Counter()
        for facts in self.facts if split is None else self.usable[split].values():
            total.update(facts.counts)
        return total


def survey_pairs(splits: Mapping[str, Dataset], spec: DatasetSpec | None, *, by_color: bool | None = None) -> Survey:
    """Decode every pair once, on all cores.

    Args:
        spec (`DatasetSpec`, *optional*): the classes of the masks; None if they are not known.
        by_color (`bool`, *optional*): if `spec` is None, whether to count the masks' colours or their ids; None to
            count neither.
    """
    survey = Survey(
        usable={name: {} for name in splits}, pair_counts={name: len(split) for name, split in splits.items()}
    )
    if spec and reads_ids(splits) and (error := find_other_palette(splits)):
        survey.problems.append(error.problem)

    def examine(pair: StoredPair) -> PairFacts:
        return examine_pair(pair, splits[pair.split].features, spec, by_color=by_color)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns of is reported as a Problem
        for pair, facts in map_pairs(examine, splits, desc="Examining"):
            survey.problems += facts.problems
            if facts.size is not None:
                survey.usable[pair.split][pair.index] = facts
    return survey


def examine_pair(
    pair: StoredPair, features: Features, spec: DatasetSpec | None, *, by_color: bool | None
) -> PairFacts:
    """Decode a pair once, and return its facts and problems; arguments as in [`survey_pairs`]."""
    facts, upright = PairFacts(name=pair.image_name), isinstance(features["image"], UprightImage)
    with ExitStack() as stack:
        if header := _open(pair.image, stack):
            facts.image_kind, facts.turned = f"{header.format} {header.mode}", _orientation(header) > 1
            facts.gray = header.mode in ("1", "L", "LA") or is_deep(header)
            facts.problems += _image_problems(header, pair.image_name, upright=upright)
        if header := _open(pair.mask, stack):
            facts.mask_kind = f"{header.format} {header.mode}"
            facts.problems += _name_problems(header, pair.mask_name)
    try:
        if spec:
            image, mask = decode_pair(pair, features, spec)
            for label, count in zip(spec.label_table, mask.histogram(), strict=True):
                if count:
                    facts.counts[label] = facts.counts.get(label, 0) + count
        else:
            image = features["image"].decode_example(pair.image | {"path": pair.image_name})
            with open_mask(pair.mask | {"path": pair.mask_name}) as mask:
                check_sizes(pair, image, mask, upright=upright)
                if by_color is not None:
                    facts.counts = _count(mask, by_color, pair.mask_name)
                palette = mask.getpalette() if mask.mode == "P" else None
                facts.palette = tuple(zip(*[iter(palette or ())] * 3, strict=False))
    except PairError as error:
        facts.problems.append(error.problem)
        return facts
    facts.size, facts.thumbnail = image.size, thumbnail(image)
    if spec and facts.counts.keys() == {spec.ignore_index}:
        remedy = "It is used neither for training nor for scores. Is this intended?"
        facts.problems.append(
            _problem("warning", "all-ignored", pair.mask_name, "every pixel of the mask is ignored", remedy)
        )
    return facts


def _open(stored: Stored, stack: ExitStack) -> PIL.Image.Image | None:
    """Open an image without decoding it; None if its header cannot be read, which decoding will report."""
    with suppress(Exception):  # for damaged files Pillow raises any exception
        return stack.enter_context(open_header(stored))
    return None


def _count(mask: PIL.Image.Image, by_color: bool, name: str) -> dict[int, int]:
    """Count the pixels of each id or colour. `getcolors` counts in C, many times faster than sorting the pixels."""
    if by_color and not mask.mode.startswith(("I", "F")):
        colors = mask.convert("RGB").getcolors(MAX_COLORS)
        if colors is None:
            remedy = "A mask has one plain colour per class; JPEG compression and smoothing make thousands of colours."
            raise PairError(name, f"the mask holds more than {MAX_COLORS:,} colours", remedy, code="mask-values")
        return {red << 16 | green << 8 | blue: count for count, (red, green, blue) in colors}
    values, counts = np.unique(raw_values(mask, by_color=by_color, name=name), return_counts=True)
    return dict(zip(map(int, values), map(int, counts), strict=True))


def _image_problems(header: PIL.Image.Image, name: str, *, upright: bool) -> Iterator[Problem]:
    yield from _name_problems(header, name)
    width, height = header.size
    if header.mode in ("RGBA", "LA", "PA") or "transparency" in header.info:
        remedy = "The model sees the colours of transparent pixels; if these look wrong, fill the transparent area."
        yield _problem(
            "note", "transparency", name, f"has transparency (mode {header.mode}), which is dropped", remedy
        )
    elif header.mode == "P":
        yield _problem(
            "note", "palette-image", name, "has a palette of 256 colours at most", "Use the original if there is one."
        )
    elif header.mode == "CMYK":
        what = "is for print (mode CMYK); converted to RGB without its colour profile, it gets wrong colours"
        yield _problem(
            "warning", "cmyk-image", name, what, "Convert it to RGB with a program that supports colour profiles."
        )
    note = _orientation(header)
    if note > 1:
        what = f"is stored turned (EXIF orientation {note})"
        done = "is turned upright, as its mask must be" if upright else "stays as stored, as its mask must be"
        yield _problem(
            "note", "exif-orientation", name, f"{what} and {done}", "Look at some of them with their masks."
        )
    if max(width, height) >= LONG * min(width, height):
        remedy = "Cut it into parts: a small input keeps little of its shorter side, or of its shape."
        yield _problem("note", "long-image", name, f"is {width}×{height} pixels, long and thin", remedy)
    if width * height > PIL.Image.MAX_IMAGE_PIXELS:
        what = f"has {width * height / 1e6:.0f} million pixels: decoding it takes much time and memory"
        yield _problem(
            "warning", "huge-image", name, what, "Make a smaller copy; the model sees it at image_size anyway."
        )


def _name_problems(header: PIL.Image.Image, name: str) -> Iterator[Problem]:
    expected = PIL.Image.registered_extensions().get(Path(name).suffix.lower())
    found = {"MPO": "JPEG"}.get(header.format, header.format)  # a JPEG file with a second picture behind it
    if expected and found != expected:
        remedy = "hf_seg reads it as such; other programs may refuse it."
        yield _problem("warning", "wrong-suffix", name, f"is a {found} file by its content", remedy)


def _orientation(header: PIL.Image.Image) -> int:
    try:
        return orientation(header)
    except Exception:  # a broken EXIF note: decode_pair reports it if it matters
        return 1


def _problem(level: Level, code: str, place: str, what: str, remedy: str) -> Problem:
    return Problem(level=level, code=code, place=place, what=what, remedy=remedy)


def find_problems(
    survey: Survey,
    spec: DatasetSpec | None,
    *,
    place: str,
    size: tuple[int, int],
    resize: str = "stretch",
    drop: bool = False,
    split_known: bool = True,
) -> Iterator[Problem]:
    """Find problems of the splits and classes, and photographs that are small, grey, blank or duplicates.

    Args:
        place (`str`): the data set, for messages.
        size (`tuple[int, int]`), resize (`str`): height and width in pixels that pictures are resized to, and how.
        drop (`bool`): whether pairs that cannot be used are left out instead of refused.
        split_known (`bool`): whether the splits are those of a run.
    """
    for name, rows in survey.usable.items():
        if split_known and not rows and (drop or not survey.pair_counts[name]):
            yield _problem("error", "empty-split", place, f"the {name} split has no usable pair", NO_PAIR)
    height, width = size
    below = all if resize == "letterbox" else any
    small = [facts.size for facts in survey.facts if below((facts.size[0] < width, facts.size[1] < height))]
    if small:
        what = f"{len(small):,} of {len(survey.facts):,} images are enlarged to image_size {width}×{height}"
        width, height = min(small, key=min)
        remedy = "This costs time and adds no detail: a smaller image_size may be enough."
        yield _problem("note", "small-image", place, f"{what} (the smallest is {width}×{height} pixels)", remedy)
    if gray := sum(facts.gray for facts in survey.facts):
        what = f"{gray:,} of {len(survey.facts):,} images have one channel, which is used for red, green and blue"
        yield _problem("note", "one-channel", place, what, "Use the originals if these have colours.")
    if spec:
        yield from _class_problems(survey, spec, place, split_known)
    yield from _photograph_problems(survey, place, split_known)


def _class_problems(survey: Survey, spec: DatasetSpec, place: str, split_known: bool) -> Iterator[Problem]:
    filled = {name: survey.pixels(name) for name, rows in survey.usable.items() if rows}
    seen = set().union(*filled.values()) - {spec.ignore_index}
    if len(seen) == 1:
        (only,) = seen
        remedy = "Nothing can be learnt from that. Are these the right masks, and the right classes.json?"
        what = f"all masks hold only one class, {spec.class_names[only]}"
        yield _problem("warning", "constant-masks", place, what, remedy)
        return
    for name, pixels in filled.items():
        total, ignored = pixels.total(), pixels[spec.ignore_index]
        if MOSTLY * total < ignored < total:
            what = f"{ignored / total:.1%} of the pixels of {name} are ignored"
            yield _problem(
                "warning", "mostly-ignored", place, what, "Does `ignore` contain something that should be a class?"
            )
        if not split_known:
            continue
        if absent := [label for index, label in enumerate(spec.class_names) if not pixels[index]]:
            if name == "train":
                remedy = "A class that is not in train cannot be learnt: add pairs with it, or remove the class."
            else:
                remedy = f"mIoU of {name} leaves such classes out: move or add pairs to have them counted."
            yield _problem("warning", "absent-class", place, f"{name} holds no pixel of {', '.join(absent)}", remedy)
        shares = _class_shares(pixels, spec)
        rare = [f"{label} ({share:.3%})" for label, share in shares.items() if 0 < share < RARE]
        if rare and name == "train":
            what = f"below {RARE:.1%} of the labelled pixels of train: {', '.join(rare)}"
            remedy = "Such a class may never be predicted, but it counts as much in mIoU as any other."
            yield _problem("note", "rare-class", place, what, remedy)


def _photograph_problems(survey: Survey, place: str, split_known: bool) -> Iterator[Problem]:
    everywhere = [(split, facts) for split, rows in survey.usable.items() for facts in rows.values()]
    if not everywhere:
        return
    thumbnails = np.stack([facts.thumbnail for _, facts in everywhere])
    for (_, facts), flat in zip(everywhere, is_flat(thumbnails), strict=True):
        if flat:
            yield _problem(
                "warning", "blank-image", facts.name, "is almost empty", "Remove it, or get the file again."
            )
    found = list(itertools.islice(find_duplicates(thumbnails), MAX_DUPLICATES + 1))
    if len(found) > MAX_DUPLICATES:
        found.pop()
        what = f"more than {MAX_DUPLICATES:,} pairs of photographs look the same; the rest are not listed"
        remedy = "Are these frames of a film? Keep each film in one split; one frame in many is enough."
        yield _problem("warning", "many-duplicates", place, what, remedy)
    for first, second, similarity in found:
        (a, one), (b, other) = everywhere[first], everywhere[second]
        if a != b:
            where = f"; this one is in {b}, that one in {a}"
            remedy = (
                "The score includes a photograph that was trained on: keep one of the two, or both in the same split. "
                "If the split is official, leave it, and say so beside the score."
            )
        else:
            where = f"; both are in {a}" if split_known else ""
            remedy = "It counts twice. Keep only one of the two, before a split is drawn again."
        what = f"looks like the same photograph as {one.name}{where} (similarity {similarity:.2f})"
        code, level = ("duplicate-within-split", "note") if a == b else ("duplicate-across-splits", "warning")
        yield _problem(level, code, other.name, what, remedy)


def describe(survey: Survey, spec: DatasetSpec | None) -> dict[str, Any]:
    """The numbers of each split, ready for JSON: `pairs`, `usable` pairs, `ignored_share` of all pixels, and
    `class_shares` of the labelled pixels."""
    described = {}
    for name, rows in survey.usable.items():
        described[name] = {"pairs": survey.pair_counts[name], "usable": len(rows)}
        if spec:
            pixels = survey.pixels(name)
            described[name]["ignored_share"] = pixels[spec.ignore_index] / max(1, pixels.total())
            described[name]["class_shares"] = _class_shares(pixels, spec)
    return described


def _class_shares(pixels: Counter[int], spec: DatasetSpec) -> dict[str, float]:
    labelled = max(1, pixels.total() - pixels[spec.ignore_index])
    return {label: pixels[index] / labelled for index, label in spec.id2label.items()}
