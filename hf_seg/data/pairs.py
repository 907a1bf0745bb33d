"""Pairs of image and mask: decoding and checking ONE of them, the one parallel pass over many, and listing them."""

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

ALL = "pairs"  # in place of the splits of a listing, where it is not known which pair is in which
AT_ONCE = 256  # pairs that are in memory at a time: a picture's bytes may lie in its table's row

SIZES = "An image and its mask must have the same width and height as stored (EXIF rotation is not applied)."
SAME = "An image and its mask must have the same width and height."
TURNED = (
    "A mask must have the size of its photograph as people see it, upright: export the mask again over the upright "
    "photograph, or take the orientation note out of the photograph's EXIF."
)
CHANNELS = "A mask must have one 8-bit channel that holds label values (Pillow's mode L or P), not colours."


@dataclass(frozen=True, kw_only=True)
class StoredPair:
    """A pair as its table stores it, not decoded."""

    split: str
    index: int
    image: Stored
    mask: Stored
    origin: str | None = None  # where it comes from, when that is no file, such as `org/name train[7]`

    @property
    def name(self) -> str:
        return f"{self.split}[{self.index}]"

    @property
    def image_name(self) -> str:
        """For messages; of files, the path."""
        return self.image["path"] if is_file(self.image) else f"{self.origin or self.name}, image"

    @property
    def mask_name(self) -> str:
        return self.mask["path"] if is_file(self.mask) else f"{self.origin or self.name}, mask"


def is_file(stored: Stored) -> bool:
    """Whether a picture is a file of its own; else its bytes stand in the table."""
    return stored["bytes"] is None


def stored_pairs(splits: Mapping[str, Dataset]) -> Iterator[StoredPair]:
    """Every pair as stored, some at a time: the bytes of a table's pictures need not fit into memory."""
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
    """One pass over all pairs, in order, on all cores; gives each with what `work` returned for it.

    Pillow's decoders let go of the interpreter lock, so threads use all cores and nothing has to be copied.

    Args:
        desc (`str`), disable_bar (`bool`): of the progress bar, which is on terminals only and is gone at the end.
    """
    waiting = stored_pairs(splits)
    off = disable_bar or None  # None: where stderr is no terminal
    bar = tqdm(desc=desc, total=sum(map(len, splits.values())), unit=" pairs", disable=off, leave=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        while pairs := list(itertools.islice(waiting, AT_ONCE)):
            yield from zip(pairs, pool.map(work, pairs), strict=True)
            bar.update(len(pairs))


def image_name(split: str, dataset: Dataset, index: int) -> str:
    """What messages call the image of a pair: its file, or where it stands."""
    (pair,) = stored_pairs({split: dataset.select([index])})
    return replace(pair, index=index).image_name


def decode_pair(pair: StoredPair, features: Features, spec: DatasetSpec) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Decode one pair as access to its table would, to an RGB image and a mask of the same size and one 8-bit channel.

    Raises:
        PairError: when the pair cannot be used.
    """
    image = features["image"].decode_example(pair.image | {"path": pair.image_name})  # by which its errors name it
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
    """Refuse an image and a mask whose sizes differ; `upright`: the image was turned as its EXIF note says."""
    if image.size == mask.size:
        return
    sizes = " but the mask is ".join("{}x{}".format(*size) for size in (image.size, mask.size))
    reason, remedy = f"the image is {sizes} ({pair.mask_name})", SAME if upright else SIZES
    if upright and mask.size == image.size[::-1] and orientation(open_header(pair.image)) >= 5:
        reason, remedy = f"{reason}: the mask fits the photograph as stored, lying on its side", TURNED
    raise PairError(pair.image_name, reason, remedy, code="size-mismatch")


def report_pairs(name: str, problems: list[Problem], total: int) -> DataError:
    """One refusal for many pairs: names up to ten, counts them all, gives each remedy once."""
    heading = f"{name}: {len(problems)} of {total} image and mask pairs cannot be used:"
    return DataError(problems=problems, heading=heading)


@dataclass(kw_only=True)
class Listing:
    """The pairs that a data section names, also where a run would be refused; nothing is decoded for it."""

    place: str  # the data set, for messages
    layout: str = ""  # of your own folder: how it is read
    spec: DatasetSpec | None = None  # None when it cannot be had
    # tables with the columns `image` and `mask`; one, `ALL`, where it is not known which pair is in which split
    splits: DatasetDict | None = None
    refusals: list[Refusal] = field(default_factory=list)  # what a run stops with
    bad_pairs: list[Problem] = field(default_factory=list)  # files and rows that are no pair
    notes: list[Problem] = field(default_factory=list)  # warnings
    save_split: Callable[[], None] | None = None  # keeps the split that was drawn; training calls it

    @property
    def split_known(self) -> bool:
        return self.splits is not None and ALL not in self.splits

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Note a refusal instead of raising it: there may be more to list."""
        try:
            yield
        except Refusal as refusal:
            self.refusals.append(refusal)

    def refuse(self, *, drop: bool) -> None:
        """Raise what a run stops with; `drop`: files and rows that are no pair are left out."""
        if self.bad_pairs and not drop and self.spec:  # before a split is drawn of what is only a part
            total = sum(map(len, (self.splits or {}).values())) + len(self.bad_pairs)
            raise report_pairs(self.place, self.bad_pairs, total)
        if self.refusals:
            raise self.refusals[0]
