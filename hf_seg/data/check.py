"""Looking at every image and mask once, before anything expensive starts; and naming the data that was used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import DatasetDict, Image
from datasets.utils import tqdm

from hf_seg.data.download import cache_folder, one_process
from hf_seg.data.own_images import UprightImage, open_stored, orientation
from hf_seg.data.spec import INVALID, DatasetSpec, PairError, report_pairs

logger = logging.getLogger(__name__)

# An image or mask as a table stores it: {"path": str, "bytes": None} for a file, {"path": None, "bytes": bytes} if
# it was generated.
Stored = dict[str, Any]

DAMAGED = "Get the undecodable files again, or remove them together with their image or mask."
SIZES = "An image and its mask must have the same width and height as stored (EXIF rotation is not applied)."
SAME = "An image and its mask must have the same width and height."
TURNED = (
    "A mask must have the size of its photograph as people see it, upright: export the mask again over the upright "
    "photograph, or take the orientation note out of the photograph's EXIF."
)
CHANNELS = "A mask must have one 8-bit channel that holds label values (Pillow's mode L or P), not colours."
VALUES = "The masks of {name} may hold {allowed}."


def fingerprint(splits: DatasetDict) -> str:
    """Name the data of a run: the same files give the same fingerprint, wherever and on whichever machine they lie.

    It covers the names of the splits and, in order, each file's name below the folder that holds all of them and its
    size in bytes, or, for generated data, the encoded bytes themselves. Files are not read.

    Args:
        splits (`DatasetDict`): columns `image` and `mask`, as `load_splits` gives them.

    Returns:
        `str`: 16 hex digits, the beginning of a SHA-256.
    """
    samples = list(_samples(splits))
    files = [stored["path"] for _, _, *pair in samples for stored in pair if stored["bytes"] is None]
    folders = {os.path.dirname(file) for file in files}
    root = os.path.commonpath(folders) if folders else ""
    digest = hashlib.sha256()
    for split, index, *pair in samples:
        for stored in pair:
            if stored["bytes"] is None:
                content = [Path(stored["path"]).relative_to(root).as_posix(), _stat(stored["path"])[0]]
            else:
                content = hashlib.sha256(stored["bytes"]).hexdigest()
            digest.update(json.dumps([f"{split}[{index}]", content]).encode())
    return digest.hexdigest()[:16]


def check_splits(splits: DatasetDict, spec: DatasetSpec) -> None:
    """Check every image and mask, in parallel; a data set of files that passed is remembered on this machine.

    Args:
        splits (`DatasetDict`): columns `image` and `mask`, as `load_splits` gives them.
        spec (`DatasetSpec`): says which raw values the masks may hold.

    Raises:
        DataError: when a file cannot be decoded, an image and its mask differ in size, a mask has not one 8-bit
            channel, or a mask holds a value outside the label table. Names up to ten pairs and counts them all.
    """

    def check() -> str:
        errors = _look_at_all(splits, spec)
        if errors:
            raise report_pairs(spec.name, [error for _, _, error in errors], sum(map(len, splits.values())))
        return ""

    _remembered(splits, spec, "", check)


def drop_bad_pairs(splits: DatasetDict, spec: DatasetSpec) -> tuple[DatasetDict, list[PairError]]:
    """Leave out every pair that `check_splits` would refuse; remembered, so that all processes leave out the same.

    Returns:
        `tuple`: the splits without these pairs, and what is wrong with each.
    """

    def look() -> str:
        errors = _look_at_all(splits, spec)
        return json.dumps([[split, index, error.file, error.reason, error.remedy] for split, index, error in errors])

    errors = json.loads(_remembered(splits, spec, ".bad", look))
    bad = {(split, index) for split, index, *_ in errors}
    good = {
        split: dataset.select([index for index in range(len(dataset)) if (split, index) not in bad])
        for split, dataset in splits.items()
    }
    return DatasetDict(good), [PairError(*error) for _, _, *error in errors]


def _look_at_all(splits: DatasetDict, spec: DatasetSpec) -> list[tuple[str, int, PairError]]:
    """What is wrong with which pair: split, position, error."""
    samples = list(_samples(splits))
    decode_image, decode_mask = (_decoder(splits, column) for column in ("image", "mask"))
    upright = isinstance(next(iter(splits.values())).features["image"], UprightImage)

    def look(sample: tuple[str, int, Stored, Stored]) -> PairError | None:
        split, index, *pair = sample
        name = f"{split}[{index}]"
        return _look(name, *pair, decode_image=decode_image, decode_mask=decode_mask, spec=spec, upright=upright)

    # Pillow's decoders let go of the interpreter lock, so threads use all cores and nothing has to be copied.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(look, samples)
        bar = tqdm(results, f"Checking {spec.name}", total=len(samples), unit=" pairs", disable=_in_memory(samples))
        return [(*sample[:2], error) for sample, error in zip(samples, bar, strict=True) if error is not None]


def _remembered(splits: DatasetDict, spec: DatasetSpec, suffix: str, make: Callable[[], str]) -> str:
    """The text that `make` gives for a data set of files, made once on this machine unless it raises."""
    samples = list(_samples(splits))
    if _in_memory(samples):
        return make()  # generated data has no name and date to be remembered by, and is quick to look at
    folder = cache_folder() / "checked"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.debug("%s", error)
    if not os.access(folder, os.W_OK):
        logger.warning("%s is not writable: the next run has to check %s again.", folder, spec.name)
        return make()
    memory = folder / f"{_state(splits, samples, spec)}{suffix}"
    if not memory.exists():
        with one_process(memory.with_name(f"{memory.name}.lock"), f"checking the images and masks of {spec.name}"):
            if not memory.exists():  # another process was quicker
                partial = memory.with_name(f"{memory.name}.partial")
                partial.write_text(make(), encoding="utf-8")
                os.replace(partial, memory)
    return memory.read_text(encoding="utf-8")


def _in_memory(samples: list[tuple[str, int, Stored, Stored]]) -> bool:
    return any(stored["bytes"] is not None for _, _, *pair in samples for stored in pair)


def _samples(splits: DatasetDict) -> Iterator[tuple[str, int, Stored, Stored]]:
    """Every pair as stored, not decoded, with its split and its position there."""
    for split, dataset in splits.items():
        stored = dataset.with_format(None)
        for column in ("image", "mask"):
            stored = stored.cast_column(column, Image(decode=False))
        for index, (image, mask) in enumerate(zip(stored["image"], stored["mask"], strict=True)):
            yield split, index, image, mask


def _decoder(splits: DatasetDict, column: str) -> Callable[[Stored], PIL.Image.Image]:
    """The function by which access to a column decodes it: what is checked is what training will see."""
    return next(iter(splits.values())).features[column].decode_example


def _stat(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in ns; -1 for what is not there, which decoding will report by name."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _state(splits: DatasetDict, samples: list[tuple[str, int, Stored, Stored]], spec: DatasetSpec) -> str:
    """A hash that changes when a file, the way of decoding it or the label table does."""
    features = str(next(iter(splits.values())).features)
    digest = hashlib.sha256(json.dumps([spec.name, spec.label_table, features]).encode())
    for _, _, *pair in samples:
        for stored in pair:
            digest.update(json.dumps([os.path.abspath(stored["path"]), *_stat(stored["path"])]).encode())
    return digest.hexdigest()


def _look(
    name: str,
    stored_image: Stored,
    stored_mask: Stored,
    *,
    decode_image: Callable[[Stored], PIL.Image.Image],
    decode_mask: Callable[[Stored], PIL.Image.Image],
    spec: DatasetSpec,
    upright: bool,
) -> PairError | None:
    """Look at one pair: None, or what is wrong with it."""
    image_name, mask_name = (s["path"] or f"{name}, {k}" for s, k in ((stored_image, "image"), (stored_mask, "mask")))
    decoded = []
    for path, stored, decode in ((image_name, stored_image, decode_image), (mask_name, stored_mask, decode_mask)):
        try:
            decoded.append(decode(stored))
        except PairError as error:
            return error
        except Exception as error:  # damaged files make Pillow raise OSError, SyntaxError, ValueError, struct.error, …
            return PairError(path, f"cannot be decoded ({type(error).__name__}: {error})", DAMAGED)
    image, mask = decoded
    if mask.mode not in ("L", "P"):
        return PairError(mask_name, f"the mask has the mode {mask.mode}", CHANNELS)
    if image.size != mask.size:
        turned = upright and orientation(open_stored(stored_image)) >= 5
        return size_error(image_name, image.size, mask_name, mask.size, upright=upright, turned=turned)
    counts = {value: count for value, count in enumerate(mask.histogram()) if count}
    strange = [f"{value} ({n} pixels)" for value, n in counts.items() if spec.label_table[value] == INVALID]
    if strange:
        allowed = ", ".join(str(value) for value, label in enumerate(spec.label_table) if label != INVALID)
        return PairError(mask_name, f"holds {', '.join(strange)}", VALUES.format(name=spec.name, allowed=allowed))
    return None


def size_error(
    image_name: str,
    image_size: tuple[int, int],
    mask_name: str,
    mask_size: tuple[int, int],
    *,
    upright: bool,
    turned: bool,
) -> PairError:
    """What is wrong with an image and a mask whose sizes (width, height) differ.

    Args:
        image_name, image_size, mask_name, mask_size: the files, and the sizes as decoded.
        upright (`bool`): images are turned as their EXIF note says.
        turned (`bool`): this one is, which exchanged its width and height.
    """
    sizes = " but the mask is ".join("{}x{}".format(*size) for size in (image_size, mask_size))
    reason = f"the image is {sizes} ({mask_name})"
    if not upright:
        return PairError(image_name, reason, SIZES)
    if turned and mask_size == image_size[::-1]:
        return PairError(image_name, f"{reason}: the mask fits the photograph as stored, lying on its side", TURNED)
    return PairError(image_name, reason, SAME)
