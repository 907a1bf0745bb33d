"""`hf-seg predict`: masks, overlays and a line of numbers for each photograph, in a folder."""

from __future__ import annotations

import colorsys
import functools
import hashlib
import io
import itertools
import json
import os
import struct
import sys
import unicodedata
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from hf_seg.inference.predict import (
    BATCH_PIXELS,
    PredictError,
    Prediction,
    Segmenter,
    Unreadable,
    check_options,
    expand_paths,
    load_segmenter,
    predict,
)
from hf_seg.text import printable, say

LINES = "predictions.jsonl"
# Of a photograph's files. An overlay is a PNG where it has a side that a JPEG cannot have.
MASK, OVERLAY, LARGE_OVERLAY = ENDINGS = (".png", "_overlay.jpg", "_overlay.png")
LARGEST_JPEG = 65_535
LONGEST_NAME = 255  # bytes, where the file system does not say
NOTE = b"hf_seg "  # and a SHA-256, in a file's comment
NOTE_PLACES = {
    b"\x89PNG": (33, 12 + len("Comment") + 1),
    b"\xff\xd8\xff\xe0": (20, 4),
}  # offset; bytes around the note


def palette_of(segmenter: Segmenter) -> list[tuple[int, int, int]]:
    """One RGB colour a class: those that a run of hf_seg saved in `config.palette`, else evenly spread hues."""
    saved = getattr(segmenter.model.config, "palette", None)
    if saved:
        return _checked(saved, len(segmenter.class_names))
    golden = 0.61803398875  # consecutive multiples of it, modulo 1, never come close to each other
    hues = [colorsys.hsv_to_rgb(index * golden % 1, 0.65, 0.9 - 0.3 * (index % 2)) for index in range(256)]
    colours = [tuple(round(255 * part) for part in hue) for hue in hues]
    return [colours[index % 256] for index in range(len(segmenter.class_names))]


def _checked(palette: object, classes: int) -> list[tuple[int, int, int]]:
    try:
        colours = np.array(palette, dtype=object)[:classes]
        if colours.shape != (classes, 3) or not all(type(part) is int and 0 <= part <= 255 for part in colours.flat):
            raise ValueError
    except (ValueError, IndexError):  # of numpy: lists of several lengths, and no list at all
        raise PredictError(
            f"the model's config.json has a palette that does not give {classes} classes a colour each, three whole "
            "numbers from 0 to 255; correct it there, or remove it"
        ) from None
    return [tuple(colour) for colour in colours.tolist()]


def predict_to_folder(
    model: Segmenter | str | Path, paths: Sequence[str | Path], out: str | Path, **options
) -> list[Unreadable]:
    """[`predict`], with everything written to a folder.

    For each photograph `NAME.png` (the mask as an indexed PNG with the classes' colours) and `NAME_overlay.jpg` (the
    mask over the photograph; a PNG when it has a side above 65,535 pixels), under the photographs' common folder; and
    `predictions.jsonl`, whole or not at all, with a line for each file: `file`, `mask`, `overlay`, `height`, `width`,
    `class_shares`, `mean_confidence`, or `file` and `error`.

    Args:
        model, paths, options: as for [`predict`].
        out (`str` or `Path`): the folder, which is created. Images in it are not segmented.

    Returns:
        `list[Unreadable]`: the files that were left out.

    Raises:
        PredictError: as [`predict`]; also, before the model is loaded, when a path lies in `out`, or when a file would
            be overwritten that this function has not written. When the folder cannot be written to, or the device has
            too little memory, what was written until then stays.
    """
    load = {key: options.pop(key) for key in ("device", "dtype") if key in options}
    check_options(**options)
    out = Path(out)
    files = _outside(paths, out)
    names = _output_names(files, _longest_name(out) - len(LARGE_OVERLAY))
    _check_places(out, names.values())
    segmenter = model if isinstance(model, Segmenter) else load_segmenter(model, **load)
    palette = palette_of(segmenter)
    partial = out / f".{LINES}.{os.getpid()}.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "x", encoding="utf-8") as lines:
                unreadable = _write_all(predict(segmenter, files, **options), palette, out, names, lines)
            os.replace(partial, out / LINES)
        finally:
            partial.unlink(missing_ok=True)
    except torch.OutOfMemoryError as error:
        raise PredictError(f"out of memory ({error}); lower batch_size, or compute on another device") from error
    except OSError as error:
        raise PredictError(f"{out}: cannot be written to ({error}); {LINES} is as it was before") from error
    return unreadable


def _write_all(predictions, palette, out: Path, names: dict[Path, Path], lines) -> list[Unreadable]:
    unreadable = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        written: deque[tuple[int, Future]] = deque()
        for prediction in tqdm(predictions, total=len(names), unit=" images"):
            places = None
            if isinstance(prediction, Unreadable):
                unreadable.append(prediction)
            else:
                places = _places(prediction, names[prediction.path])
                future = pool.submit(_write, prediction, palette, *(out / place for place in places))
                written.append((prediction.mask.size, future))
            lines.write(_as_json(prediction, places) + "\n")
            del prediction
            # encoding is slower than the model: do not pile up photographs
            while len(written) > 64 or sum(pixels for pixels, _ in written) > BATCH_PIXELS:
                written.popleft()[1].result()
        for _, future in written:
            future.result()
    return unreadable


def _places(prediction: Prediction, name: Path) -> tuple[Path, Path]:
    overlay = OVERLAY if max(prediction.image.size) <= LARGEST_JPEG else LARGE_OVERLAY
    return name.with_name(name.name + MASK), name.with_name(name.name + overlay)


def _write(prediction: Prediction, palette: Sequence[tuple[int, int, int]], mask_place: Path, place: Path) -> None:
    colours = np.array(palette, dtype=np.uint8)
    mask = Image.fromarray(prediction.mask)
    if prediction.mask.dtype == np.uint8:
        mask = Image.frombytes("P", mask.size, prediction.mask.tobytes())
        mask.putpalette(colours.tobytes())
    _save(mask, mask_place)
    coloured = Image.fromarray(colours[prediction.mask]).resize(prediction.image.size, Image.Resampling.NEAREST)
    _save(Image.blend(prediction.image, coloured, 0.5), place, quality=90)


def _save(image: Image.Image, place: Path, **options) -> None:
    """Write an image file whole or not at all, with the note by which [`written_here`] knows it."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG" if place.suffix == ".png" else "JPEG", **options)
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{os.getpid()}-{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}.partial")
    try:
        partial.write_bytes(_noted(encoded.getvalue()))
        os.replace(partial, place)  # a link that stands there is replaced, and what it leads to stays
    finally:
        partial.unlink(missing_ok=True)


def _noted(encoded: bytes) -> bytes:
    """A PNG or a JPEG of Pillow with a comment: the SHA-256 of all its other bytes."""
    note = NOTE + hashlib.sha256(encoded).hexdigest().encode()
    at, _ = NOTE_PLACES[encoded[:4]]
    if encoded.startswith(b"\x89PNG"):
        chunk = b"tEXtComment\0" + note
        comment = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    else:
        comment = b"\xff\xfe" + struct.pack(">H", len(note) + 2) + note
    return encoded[:at] + comment + encoded[at:]


def written_here(path: Path) -> bool:
    """Whether a mask or an overlay is, byte for byte, what hf_seg has written: a mask that was edited is not."""
    try:
        found = path.read_bytes()
        at, around = NOTE_PLACES[found[:4]]
        return _noted(found[:at] + found[at + around + len(NOTE) + 64 :]) == found
    except (OSError, KeyError):
        return False


def _outside(paths: Sequence[str | Path], out: Path) -> list[Path]:
    """The files of paths that do not lie in the output folder.

    Raises:
        PredictError: as [`expand_paths`]; also when a path itself, or everything that it leads to, lies there.
    """

    @functools.cache
    def lies_in_out(folder: Path) -> bool:  # by the folder itself, so that links and letter case do not matter
        if not os.path.isdir(out):
            return False
        return (os.path.exists(folder) and os.path.samefile(folder, out)) or (
            folder.parent != folder and lies_in_out(folder.parent)
        )

    def is_result(path: Path) -> bool:
        return any(lies_in_out(Path(place(path))) for place in (os.path.abspath, os.path.realpath))

    remedy = "an output folder is never an input, so that no photograph is overwritten: name another folder by --out"
    for path in map(Path, paths):
        if os.path.lexists(path) and is_result(path):
            raise PredictError(f"{path}: is or lies in {out}; {remedy}")
    files = expand_paths(paths)
    outside = [path for path in files if not is_result(path)]
    if not outside:
        raise PredictError(f"all {len(files)} images lie in {out}; {remedy}")
    if len(outside) < len(files):
        say(f"{out}: {len(files) - len(outside)} images in it are left out", file=sys.stderr)
    return outside


def _longest_name(out: Path) -> int:
    """How many bytes a file's name may have in the output folder.

    Raises:
        PredictError: when the folder cannot be made or written to.
    """
    there = next(place for place in (out, *Path(os.path.abspath(out)).parents) if os.path.lexists(place))
    if not os.path.isdir(there):
        raise PredictError(f"{there}: is no folder, so nothing can be written to {out}; name another by --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PredictError(f"{there}: may not be written to; name another folder by --out")
    return os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else LONGEST_NAME


def _output_names(files: Sequence[Path], longest: int) -> dict[Path, Path]:
    """Each file's place below the common folder, without ending: no two files get a mask or an overlay of one name.

    A name has the photograph's suffix or a number where it would be taken otherwise, also on file systems that do not
    tell letter case or Unicode forms apart, and is cut where it would have more than `longest` bytes.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
    places = {path: Path(os.path.relpath(os.path.abspath(path), root)) for path in files}
    counts = Counter(_folded(place.parent / place.stem) for place in places.values())
    taken = {_folded(folder) for place in places.values() for folder in place.parents}
    names = {}
    for path, place in places.items():
        for extra in _extras(place, is_single=counts[_folded(place.parent / place.stem)] == 1):
            stem = os.fsencode(place.stem)
            if len(stem) + len(os.fsencode(extra)) > longest:
                stem = stem[: longest - len(os.fsencode(extra))].decode(errors="ignore").encode()
            name = place.parent / (os.fsdecode(stem) + extra)
            outputs = {_folded(f"{name}{ending}") for ending in ENDINGS}
            if not outputs & taken:
                break
        taken |= outputs
        names[path] = name
    return names


def _extras(place: Path, is_single: bool) -> Iterator[str]:
    suffix = f"_{place.suffix[1:9]}"
    return itertools.chain([""] * is_single, [suffix], (f"{suffix}_{number}" for number in itertools.count(2)))


def _folded(name: Path | str) -> str:
    return unicodedata.normalize("NFC", str(name).casefold())


def _check_places(out: Path, names: Sequence[Path]) -> None:
    """Refuse to overwrite what hf_seg has not written.

    Raises:
        PredictError: naming the files.
    """
    places = (out / name.with_name(name.name + ending) for name in names for ending in ENDINGS)
    foreign = [place for place in places if os.path.lexists(place) and not written_here(place)]
    if os.path.lexists(out / LINES) and not _are_lines(out / LINES):
        foreign.append(out / LINES)
    if foreign:
        more = f" and {len(foreign) - 10} more" if len(foreign) > 10 else ""
        raise PredictError(
            f"{out}: files there would be overwritten that hf-seg has not written, or that were changed since: "
            f"{', '.join(printable(str(place)) for place in foreign[:10])}{more}; move them, or name another folder "
            "by --out"
        )


def _are_lines(path: Path) -> bool:
    """Whether a file holds lines of ours: the first one has the keys that ours have."""
    try:
        with open(path, "rb") as file:
            first = file.readline(2**20)
        return not first or {"file"} < json.loads(first).keys() & {"file", "error", "mean_confidence"}
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _as_json(prediction: Prediction | Unreadable, places: tuple[Path, Path] | None) -> str:
    """One line of JSON: the file with its mask, class shares and mean confidence, or with the error."""
    if places is None:
        return json.dumps({"file": str(prediction.path), "error": prediction.reason})
    height, width = prediction.mask.shape
    return json.dumps(
        {
            "file": str(prediction.path),
            "mask": places[0].as_posix(),
            "overlay": places[1].as_posix(),
            "height": height,
            "width": width,
            "class_shares": prediction.class_shares,
            "mean_confidence": prediction.mean_confidence,
        }
    )
