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
from hf_seg.data.spec import INVALID, DataError, DatasetSpec, listing

logger = logging.getLogger(__name__)

# An image or mask as a table stores it: {"path": str, "bytes": None} for a file, {"path": None, "bytes": bytes} if
# it was generated.
Stored = dict[str, Any]

DAMAGED = "Get the undecodable files again, or remove them together with their image or mask."
SIZES = "An image and its mask must have the same width and height as stored (EXIF rotation is not applied)."
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
    folders = {os.path.dirname(stored["path"]) for _, *pair in samples for stored in pair if stored["bytes"] is None}
    root = os.path.commonpath(folders) if folders else ""
    digest = hashlib.sha256()
    for name, *pair in samples:
        for stored in pair:
            if stored["bytes"] is None:
                content = [Path(stored["path"]).relative_to(root).as_posix(), _stat(stored["path"])[0]]
            else:
                content = hashlib.sha256(stored["bytes"]).hexdigest()
            digest.update(json.dumps([name, content]).encode())
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
    samples = list(_samples(splits))
    decode_image, decode_mask = (_decoder(splits, column) for column in ("image", "mask"))

    def look(sample: tuple[str, Stored, Stored]) -> tuple[str, str] | None:
        return _look(*sample, decode_image=decode_image, decode_mask=decode_mask, spec=spec)

    in_memory = any(stored["bytes"] is not None for _, *pair in samples for stored in pair)

    def check() -> None:
        # Pillow's decoders let go of the interpreter lock, so threads use all cores and nothing has to be copied.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(look, samples)
            bar = tqdm(results, f"Checking {spec.name}", total=len(samples), unit=" pairs", disable=in_memory)
            problems = [problem for problem in bar if problem is not None]
        if problems:
            remedies = dict.fromkeys(remedy for _, remedy in problems)
            raise DataError(
                f"{spec.name}: {len(problems)} of {len(samples)} image and mask pairs cannot be used:\n"
                f"{listing([what for what, _ in problems])}\n" + "\n".join(remedies)
            )

    if in_memory:
        check()  # generated data has no name and date to be remembered by, and is quick to look at
        return
    folder = cache_folder() / "checked"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.debug("%s", error)
    if not os.access(folder, os.W_OK):
        logger.warning("%s is not writable: the next run has to check %s again.", folder, spec.name)
        check()
        return
    passed = folder / _state(samples, spec)
    if not passed.exists():
        with one_process(passed.with_suffix(".lock"), f"checking the images and masks of {spec.name}"):
            if not passed.exists():  # another process was quicker
                check()
                passed.touch()


def _samples(splits: DatasetDict) -> Iterator[tuple[str, Stored, Stored]]:
    """Every pair as stored, not decoded, with a name such as `train[12]`."""
    for split, dataset in splits.items():
        stored = dataset.with_format(None)
        for column in ("image", "mask"):
            stored = stored.cast_column(column, Image(decode=False))
        for index, (image, mask) in enumerate(zip(stored["image"], stored["mask"], strict=True)):
            yield f"{split}[{index}]", image, mask


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


def _state(samples: list[tuple[str, Stored, Stored]], spec: DatasetSpec) -> str:
    """A hash that changes when a file or the label table does."""
    digest = hashlib.sha256(json.dumps([spec.name, spec.label_table]).encode())
    for _, *pair in samples:
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
) -> tuple[str, str] | None:
    """Look at one pair: None, or what is wrong with it and the remedy."""
    image_name, mask_name = (s["path"] or f"{name}, {k}" for s, k in ((stored_image, "image"), (stored_mask, "mask")))
    decoded = []
    for path, stored, decode in ((image_name, stored_image, decode_image), (mask_name, stored_mask, decode_mask)):
        try:
            decoded.append(decode(stored))
        except Exception as error:  # damaged files make Pillow raise OSError, SyntaxError, ValueError, struct.error, …
            return f"{path}: cannot be decoded ({type(error).__name__}: {error})", DAMAGED
    image, mask = decoded
    if mask.mode not in ("L", "P"):
        return f"{mask_name}: the mask has the mode {mask.mode}", CHANNELS
    if image.size != mask.size:
        sizes = " but the mask is ".join("{}x{}".format(*size) for size in (image.size, mask.size))
        return f"{image_name}: the image is {sizes} ({mask_name})", SIZES
    counts = {value: count for value, count in enumerate(mask.histogram()) if count}
    strange = [f"{value} ({n} pixels)" for value, n in counts.items() if spec.label_table[value] == INVALID]
    if strange:
        allowed = [str(value) for value, label in enumerate(spec.label_table) if label != INVALID]
        return f"{mask_name}: holds {', '.join(strange)}", VALUES.format(name=spec.name, allowed=", ".join(allowed))
    return None
