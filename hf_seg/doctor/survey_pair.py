"""What is to be known of one pair before a model trains on it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import Features

from hf_seg.data import stored_image
from hf_seg.data.columns import UprightImage
from hf_seg.data.gather import as_finding
from hf_seg.data.pairs import StoredPair, decode_pair
from hf_seg.data.spec import DatasetSpec
from hf_seg.data.stored_image import Stored, open_header
from hf_seg.doctor.duplicates import thumbnail
from hf_seg.problem import Level, PairError, Problem

LONG = 4  # times as long as wide, from which on squeezing a picture into a square spoils what is in it


@dataclass(kw_only=True)
class PairFacts:
    """One pair.

    Args:
        findings (`list[Problem]`): what is to be said of it.
        size (`tuple[int, int]`, *optional*): width and height; None: the pair cannot be used.
        counts (`dict[int, int]`): class id (255: ignored) → pixels.
        thumbnail (`np.ndarray`, *optional*): see `duplicates.thumbnail`.
    """

    findings: list[Problem] = field(default_factory=list)
    size: tuple[int, int] | None = None
    counts: dict[int, int] = field(default_factory=dict)
    thumbnail: np.ndarray | None = None


def examine_pair(pair: StoredPair, features: Features, spec: DatasetSpec, bad: Level) -> PairFacts:
    """Decode a pair once, and say all there is to say.

    Args:
        pair ([`StoredPair`]): from `stored_pairs`.
        features (`Features`): of its table.
        spec (`DatasetSpec`): what the mask may hold.
        bad (`"error"` or `"warning"`): what a pair is that cannot be used.
    """
    facts = PairFacts()
    with _open(pair.image) as header:
        upright = isinstance(features["image"], UprightImage)
        facts.findings += _look_at_image(header, pair.image_name, upright=upright) if header else ()
    with _open(pair.mask) as header:
        facts.findings += _look_at_name(header, pair.mask_name) if header else ()
    try:
        image, mask = decode_pair(pair, features, spec)
    except PairError as error:
        facts.findings.append(as_finding(error, bad))
        return facts
    facts.size, facts.thumbnail = image.size, thumbnail(image)
    for value, count in enumerate(mask.histogram()):
        if count:
            label = spec.label_table[value]
            facts.counts[label] = facts.counts.get(label, 0) + count
    if facts.counts.keys() == {spec.ignore_index}:
        what = "every pixel of the mask is ignored"
        remedy = "Nothing is learnt from it, and nothing scored on it. Is that meant?"
        facts.findings.append(_warning("all-ignored", pair.mask_name, what, remedy))
    return facts


@contextmanager
def _open(stored: Stored) -> Iterator[PIL.Image.Image | None]:
    """The header alone; None when it cannot be read."""
    try:
        image = open_header(stored)
    except Exception:  # as in pairs: decode_pair says what it is
        yield None
        return
    with image:
        yield image


def _look_at_image(header: PIL.Image.Image, name: str, *, upright: bool) -> Iterator[Problem]:
    yield from _look_at_name(header, name)
    width, height = header.size
    if header.mode in ("RGBA", "LA", "PA") or "transparency" in header.info:
        remedy = "What lies under transparent pixels is seen by the model; put the picture on a ground if that is odd."
        yield _note("transparency", name, f"has transparency (mode {header.mode}), which is dropped", remedy)
    elif header.mode == "P":
        yield _note("palette-image", name, "has a palette of 256 colours at most", "Use the original if there is one.")
    elif header.mode == "CMYK":
        what = "is for print (mode CMYK); as RGB without its colour profile, its colours are not those that people see"
        yield _warning("cmyk-image", name, what, "Convert it to RGB with a program that knows colour profiles.")
    note = _orientation(header)
    if note > 1:
        what = f"is stored turned (EXIF orientation {note})"
        done = "is turned upright, as its mask has to be" if upright else "stays as stored, as its mask has to be"
        yield _note("exif-orientation", name, f"{what} and {done}", "Look at some of them with their masks.")
    if max(width, height) >= LONG * min(width, height):
        what = f"is {width}×{height} pixels, and becomes a square"
        yield _note("long-image", name, what, "Cut it into parts: its length and width shrink by different factors.")
    if width * height > PIL.Image.MAX_IMAGE_PIXELS:
        what = f"has {width * height / 1e6:.0f} million pixels: decoding it takes long, and much memory"
        yield _warning("huge-image", name, what, "Make a smaller copy; the model sees it at image_size anyway.")


def _look_at_name(header: PIL.Image.Image, name: str) -> Iterator[Problem]:
    expected = _formats().get(Path(name).suffix.lower())
    found = {"MPO": "JPEG"}.get(header.format, header.format)  # a JPEG file with a second picture behind it
    if expected and found != expected:
        what = f"is a {found} file by its content"
        yield _warning(
            "wrong-suffix", name, what, "Harmless here, since the content decides; other programs refuse it."
        )


@functools.cache
def _formats() -> dict[str, str]:
    return PIL.Image.registered_extensions()


def _orientation(header: PIL.Image.Image) -> int:
    try:
        return stored_image.orientation(header)
    except Exception:  # a broken note: where it counts, decode_pair says so
        return 1


def _warning(code: str, file: str, what: str, remedy: str) -> Problem:
    return Problem(level="warning", code=code, place=file, what=what, remedy=remedy)


def _note(code: str, file: str, what: str, remedy: str) -> Problem:
    return Problem(level="note", code=code, place=file, what=what, remedy=remedy)
