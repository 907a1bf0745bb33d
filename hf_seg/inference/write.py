"""`hf-seg predict`: write a mask, an overlay and a line of numbers for each photograph to a folder."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import struct
import sys
import unicodedata
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import TextIO

import numpy as np
from accelerate.utils.memory import should_reduce_batch_size
from PIL import Image
from tqdm.auto import tqdm

from hf_seg.files import check_writable, write_whole
from hf_seg.inference.predict import BATCH_PIXELS, Options, Prediction, expand_paths, predict_files
from hf_seg.inference.segmenter import Segmenter, load_segmenter
from hf_seg.problem import Problem, Refusal, first
from hf_seg.text import say

LINES = "predictions.jsonl"
# Endings of a photograph's files. An overlay with a side above LARGEST_JPEG is a PNG.
MASK, OVERLAY, LARGE_OVERLAY = ENDINGS = (".png", "_overlay.jpg", "_overlay.png")
LARGEST_JPEG = 65_535  # pixels; longest side of a JPEG
LONGEST_NAME = 255  # bytes, where the file system does not report it
NOTE = b"hf_seg "  # a file's comment starts with this, before a SHA-256
NOTE_PLACES = {b"\x89PNG": (33, 12 + len("Comment") + 1), b"\xff\xd8\xff\xe0": (20, 4)}  # offset, bytes around NOTE


def predict_to_folder(
    model: Segmenter | str | Path,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    device: str | None = None,
    dtype: str = "float32",
    **options,
) -> list[Problem]:
    """[`predict`] photographs and write the results to a folder.

    For each photograph this writes `NAME.png` (the mask as an indexed PNG with the classes' colours; 16-bit grey for
    more than 256 classes) and `NAME_overlay.jpg` (the mask over the photograph; a PNG if a side is above 65,535
    pixels), in the same subfolders as below the photographs' common folder. `predictions.jsonl`, written whole or not
    at all, has a line for each file: `file`, `mask`, `overlay`, `height`, `width`, `class_shares` and
    `mean_confidence`, or `file` and `error`.

    Args:
        out: the folder, which is created. Images in it are not segmented.
        model, paths, device, dtype, options: as in [`predict`].

    Returns:
        `list[Problem]`: one for each file that was left out.

    Raises:
        Refusal: as [`predict`]; also, before the model is loaded, when a path lies in `out`, or when a file would be
            overwritten that this function did not write. Also when writing fails or memory runs out; the files written
            so far stay.
    """
    chosen, out = Options(**options), Path(out)
    files, there = _outside(paths, out), check_writable(out)
    longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else LONGEST_NAME
    names = _output_names(files, longest - len(LARGE_OVERLAY))
    _check_places(out, names.values())
    segmenter = model if isinstance(model, Segmenter) else load_segmenter(model, device=device, dtype=dtype)
    palette, results = np.array(segmenter.palette, dtype=np.uint8), predict_files(segmenter, files, chosen)
    try:
        with write_whole(out / LINES) as partial, open(partial, "x", encoding="utf-8") as lines:
            problems = _write_all(results, palette, out, names, lines)
        say(f"{out}: {len(files) - len(problems):,} masks and overlays, described in {LINES}")
        return problems
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        remedy = "lower batch_size, compute on another device, or write masks of the model's size (--size model)"
        raise Refusal("", f"out of memory ({error})", remedy, code="memory") from error
    except OSError as error:
        raise Refusal(out, f"cannot be written to ({error})", f"{LINES} is unchanged") from error


def _write_all(
    results: Iterable[Prediction | Problem], palette: np.ndarray, out: Path, names: dict[Path, str], lines: TextIO
) -> list[Problem]:
    problems = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        written: deque[tuple[int, Future]] = deque()
        for result in tqdm(results, total=len(names), unit=" images", disable=None):
            if isinstance(result, Problem):
                problems.append(result)
                line = {"file": result.place, "error": f"{result.what}. {result.remedy}"}
            else:
                name = names[result.path]
                ending = OVERLAY if max(result.image.size) <= LARGEST_JPEG else LARGE_OVERLAY
                mask, overlay = name + MASK, name + ending
                pixels = max(result.mask.size, result.image.width * result.image.height)
                written.append((pixels, pool.submit(_write, result, palette, out / mask, out / overlay)))
                line = {"file": str(result.path), "mask": mask, "overlay": overlay}
                line |= dict(zip(("height", "width"), result.mask.shape, strict=True))
                line |= {"class_shares": result.class_shares, "mean_confidence": result.mean_confidence}
            lines.write(json.dumps(line) + "\n")
            del result
            # encoding is slower than the model: limit the photographs that wait in memory
            while len(written) > 64 or sum(pixels for pixels, _ in written) > BATCH_PIXELS:
                written.popleft()[1].result()
        for _, future in written:
            future.result()
    return problems


def _write(prediction: Prediction, palette: np.ndarray, mask_place: Path, overlay_place: Path) -> None:
    mask = Image.fromarray(prediction.mask)
    if prediction.mask.dtype == np.uint8:
        mask = Image.frombytes("P", mask.size, prediction.mask.tobytes())
        mask.putpalette(palette.tobytes())
    _save(mask, mask_place)
    coloured = Image.fromarray(palette[prediction.mask]).resize(prediction.image.size, Image.Resampling.NEAREST)
    overlay = Image.blend(prediction.image, coloured, 0.5)
    overlay.info = {}  # drops the photograph's comment: it may be private, or too long for a JPEG
    _save(overlay, overlay_place, quality=90)


def _save(image: Image.Image, place: Path, **options) -> None:
    """Write an image file with the comment by which [`written_here`] recognises it."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG" if place.suffix == ".png" else "JPEG", **options)
    with write_whole(place) as partial:
        partial.write_bytes(_noted(encoded.getvalue()))


def _noted(encoded: bytes) -> bytes:
    """Add a comment to an encoded PNG or JPEG of Pillow: the SHA-256 of all its other bytes."""
    note = NOTE + hashlib.sha256(encoded).hexdigest().encode()
    at, _ = NOTE_PLACES[encoded[:4]]
    if encoded.startswith(b"\x89PNG"):
        chunk = b"tEXtComment\0" + note
        comment = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    else:
        comment = b"\xff\xfe" + struct.pack(">H", len(note) + 2) + note
    return encoded[:at] + comment + encoded[at:]


def written_here(path: Path) -> bool:
    """Whether a mask or an overlay is byte for byte as hf_seg has written it, and was not edited since."""
    try:
        found = path.read_bytes()
        at, around = NOTE_PLACES[found[:4]]
        return _noted(found[:at] + found[at + around + len(NOTE) + 64 :]) == found
    except (OSError, KeyError):
        return False


def _has_note(path: Path) -> bool:
    """Whether a file begins like one of [`_save`]. No more of it is read: there may be many large photographs."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError:
        return False
    return head[:4] in NOTE_PLACES and NOTE in head[NOTE_PLACES[head[:4]][0] :]


def _outside(paths: Sequence[str | Path], out: Path) -> list[Path]:
    """The files of `paths`. Those in the output folder are left out, and earlier masks and overlays that are not named
    themselves. Refuse a path that lies in the output folder, and paths without other files."""

    @functools.cache
    def lies_in_out(place: Path) -> bool:  # samefile, so that links and letter case do not matter
        if os.path.exists(place) and os.path.samefile(place, out):
            return True
        return place != place.parent and lies_in_out(place.parent)

    def is_result(path: Path) -> bool:
        return out.is_dir() and any(lies_in_out(Path(find(path))) for find in (os.path.abspath, os.path.realpath))

    remedy = "the output folder cannot be an input: name another folder with --out"
    for path in map(Path, paths):
        if os.path.lexists(path) and is_result(path):
            raise Refusal(path, f"is or lies in {out}", remedy)
    files = expand_paths(paths)
    named = {os.path.abspath(path) for path in paths}
    outside = (path for path in files if not is_result(path))
    photographs = [path for path in outside if os.path.abspath(path) in named or not _has_note(path)]
    if not photographs:
        raise Refusal("", f"all {len(files)} images lie in {out} or are masks and overlays of hf-seg predict", remedy)
    if left_out := len(files) - len(photographs):
        what = f"{left_out} images are left out: they lie in {out} or are masks and overlays of hf-seg predict"
        say(what, file=sys.stderr)
    return photographs


def _output_names(files: Sequence[Path], longest: int) -> dict[Path, str]:
    """Each file → its output path below the common folder, without ending; no two outputs have the same name."""
    # Where a name would be taken otherwise, the photograph's suffix or a number is added; names that differ only in
    # letter case or Unicode form count as the same. Names are cut to `longest` bytes.
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
    places = {path: Path(os.path.relpath(os.path.abspath(path), root)) for path in files}
    counts = Counter(_folded(place.with_suffix("")) for place in places.values())
    taken = {_folded(folder) for place in places.values() for folder in place.parents}
    names = {}
    for path, place in places.items():
        alone = counts[_folded(place.with_suffix(""))] == 1
        suffix = f"_{place.suffix[1:9]}"
        for extra in chain([""] * alone, [suffix], (f"{suffix}_{number}" for number in count(2))):
            stem = os.fsencode(place.stem)
            if len(stem) + len(os.fsencode(extra)) > longest:
                stem = stem[: longest - len(os.fsencode(extra))].decode(errors="ignore").encode()
            name = (place.parent / (os.fsdecode(stem) + extra)).as_posix()
            outputs = {_folded(name + ending) for ending in ENDINGS}
            if not outputs & taken:
                break
        taken |= outputs
        names[path] = name
    return names


def _folded(name: Path | str) -> str:
    return unicodedata.normalize("NFC", str(name).casefold())


def _check_places(out: Path, names: Iterable[str]) -> None:
    """Refuse to overwrite files that hf_seg did not write or that were changed."""
    places = (out / (name + ending) for name in names for ending in ENDINGS)
    foreign = [place for place in places if os.path.lexists(place) and not written_here(place)]
    if os.path.lexists(out / LINES) and not _are_lines(out / LINES):
        foreign.append(out / LINES)
    if foreign:
        what = "would overwrite files that hf-seg did not write or that were changed"
        raise Refusal(out, f"{what}: {first(foreign)}", "move them, or name another folder with --out")


def _are_lines(path: Path) -> bool:
    """Whether a file is a `predictions.jsonl` of hf_seg, or empty, judged by the keys of its first line."""
    try:
        with open(path, "rb") as file:
            first = file.readline(2**20)
        return not first or {"file"} < json.loads(first).keys() & {"file", "error", "mean_confidence"}
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
