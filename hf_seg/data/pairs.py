"""Pairs of image and mask: decoding and checking one pair, the parallel pass over many pairs, and listing them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import PIL.Image
from datasets import Dataset, DatasetDict, Features, Image
from datasets.utils import tqdm

from hf_seg.data.columns import UprightImage
from hf_seg.data.spec import INVALID, DatasetSpec
from hf_seg.data.stored_image import Stored, open_header, orientation
from hf_seg.problem import DataError, PairError, Problem, Refusal

T = TypeVar("T")

ALL = "pairs"  # the only key of a listing's `splits` when it is not known which pair is in which split
AT_ONCE = 256  # pairs in memory at a time: a table's rows may contain the bytes of the pictures

SIZES = "An image and its mask must have the same width and height as stored (EXIF rotation is not applied)."
SAME = "An image and its mask must have the same width and height."
TURNED = (
    "A mask must have the size of its photograph when upright: export the mask again over the upright photograph, or "
    "remove the orientation from the photograph's EXIF data."
)
CHANNELS = "A mask must have one 8-bit channel that holds label values (Pillow's mode L or P), not colours."


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """A pair as its table stores it, not decoded."""

    split: str
    index: int
    image: Stored
    mask: Stored
    origin: str | None = None  # row of a table, such as `org/name train[7]`; None for other sources

    @property
    def name(self) -> str:
        return f"{self.split}[{self.index}]"

    @property
    def image_name(self) -> str:
        """The image in messages: its path if it is a file, else its row."""
        return self.image["path"] if is_file(self.image) else f"{self.origin or self.name}, image"

    @property
    def mask_name(self) -> str:
        return self.mask["path"] if is_file(self.mask) else f"{self.origin or self.name}, mask"


def is_file(stored: Stored) -> bool:
    """Whether a picture is a file of its own; otherwise the table contains its bytes."""
    return stored["bytes"] is None


def stored_pairs(splits: Mapping[str, Dataset]) -> Iterator[StoredPair]:
    """Yield every pair as stored, reading `AT_ONCE` at a time: the pictures of a table may be larger than memory."""
    for split, dataset in splits.items():
        stored = dataset.with_format(None)
        for column in ("image", "mask"):
            stored = stored.cast_column(column, Image(decode=False))
        for start in range(0, len(stored), AT_ONCE):
            rows = stored[start : start + AT_ONCE]
            columns = (rows["image"], rows["mask"], rows.get("origin", [None] * len(rows["mask"])))
            for index, (image, mask, origin) in enumerate(zip(*columns, strict=True), start):
                yield StoredPair(split=split, index=index, image=image, mask=mask, origin=origin)


def map_pairs(
    work: Callable[[StoredPair], T], splits: Mapping[str, Dataset], *, desc: str, disable_bar: bool = False
) -> Iterator[tuple[StoredPair, T]]:
    """Apply `work` to all pairs, on all cores; yield each pair with its result, in order.

    Pillow's decoders release the GIL, so threads use all cores and nothing is copied between processes.

    Args:
        desc (`str`): title of the progress bar, which is shown only on terminals and removed at the end.
        disable_bar (`bool`): show no progress bar.
    """
    waiting = stored_pairs(splits)
    off = disable_bar or None  # None: tqdm shows no bar if stderr is not a terminal
    bar = tqdm(desc=desc, total=sum(map(len, splits.values())), unit=" pairs", disable=off, leave=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        while pairs := list(itertools.islice(waiting, AT_ONCE)):
            yield from zip(pairs, pool.map(work, pairs), strict=True)
            bar.update(len(pairs))


def image_name(split: str, dataset: Dataset, index: int) -> str:
    """Return the name of a pair's image in messages: its path, or its row."""
    (pair,) = stored_pairs({split: dataset.select([index])})
    return replace(pair, index=index).image_name


def decode_pair(pair: StoredPair, features: Features, spec: DatasetSpec) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Decode one pair as reading it from its table does: an RGB image, and a mask of the same size in mode L or P.

    Raises:
        PairError: when the pair cannot be used.
    """
    image = features["image"].decode_example(pair.image | {"path": pair.image_name})  # the name in error messages
    mask = features["mask"].decode_example(pair.mask | {"path": pair.mask_name})
    if mask.mode not in ("L", "P"):
        raise PairError(pair.mask_name, f"the mask has the mode {mask.mode}", CHANNELS, code="mask-kind")
    check_sizes(pair, image, mask, upright=isinstance(features["image"], UprightImage))
    counts = {value: count for value, count in enumerate(mask.histogram()) if count}
    strange = [f"{value} ({n} pixels)" for value, n in counts.items() if spec.label_table[value] == INVALID]
    if strange:
        allowed = ", ".join(str(value) for value, label in enumerate(spec.label_table) if label != INVALID)
        remedy = f"The masks of {spec.name} may hold {allowed}."
        raise PairError(pair.mask_name, f"holds {', '.join(strange)}", remedy, code="mask-values")
    return image, mask


def check_sizes(pair: StoredPair, image: PIL.Image.Image, mask: PIL.Image.Image, *, upright: bool) -> None:
    """Raise a PairError if the sizes differ. `upright`: the image was rotated by its EXIF orientation."""
    if image.size == mask.size:
        return
    sizes = " but the mask is ".join("{}x{}".format(*size) for size in (image.size, mask.size))
    reason, remedy = f"the image is {sizes} ({pair.mask_name})", SAME if upright else SIZES
    if upright and mask.size == image.size[::-1] and orientation(open_header(pair.image)) >= 5:
        reason, remedy = f"{reason}: the mask fits the photograph as stored, lying on its side", TURNED
    raise PairError(pair.image_name, reason, remedy, code="size-mismatch")


def report_pairs(name: str, problems: list[Problem], total: int) -> DataError:
    """Build one error for many pairs: it names up to ten, counts all of them, and gives each remedy once."""
    heading = f"{name}: {len(problems)} of {total} image and mask pairs cannot be used:"
    return DataError(problems=problems, heading=heading)


@dataclass(kw_only=True)
class Listing:
    """The pairs of a recipe's data section, listed even if a run would be refused; none is decoded."""

    place: str  # the data set, for messages
    layout: str = ""  # layout of your own folder; empty for other sources
    spec: DatasetSpec | None = None  # None when it cannot be read
    # tables with the columns `image` and `mask`; a single one, `ALL`, if it is not known which pair is in which split
    splits: DatasetDict | None = None
    refusals: list[Refusal] = field(default_factory=list)  # errors; a run raises the first one
    bad_pairs: list[Problem] = field(default_factory=list)  # files and rows that are not a pair
    notes: list[Problem] = field(default_factory=list)  # warnings
    save_split: Callable[[], None] | None = None  # writes a drawn split to split.json; loading the data calls it

    @property
    def split_known(self) -> bool:
        return self.splits is not None and ALL not in self.splits

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Record a refusal instead of raising it, so that listing continues."""
        try:
            yield
        except Refusal as refusal:
            self.refusals.append(refusal)

    def refuse(self, *, drop: bool) -> None:
        """Raise the refusal that stops a run, if any. `drop`: files and rows that are not a pair are left out."""
        if self.bad_pairs and not drop and self.spec:  # before a split of only the good pairs is saved
            total = sum(map(len, (self.splits or {}).values())) + len(self.bad_pairs)
            raise report_pairs(self.place, self.bad_pairs, total)
        if self.refusals:
            raise self.refusals[0]
