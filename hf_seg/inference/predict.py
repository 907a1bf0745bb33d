"""Batched inference: predict the masks of photographs. `write.predict_to_folder` writes them to a folder."""

from __future__ import annotations

import glob
import math
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from PIL import Image
from torch import Tensor

from hf_seg.data.file_search import IMAGE_SUFFIXES, find_files
from hf_seg.data.geometry import Box, blend, cut, slide, strongest
from hf_seg.data.stored_image import DAMAGED, open_header, open_image
from hf_seg.inference.segmenter import Segmenter, load_segmenter
from hf_seg.problem import PairError, Problem, Refusal, first, one_line
from hf_seg.scoring.upsampling import upsample, upsample_picture, upsampled_argmax
from hf_seg.text import say

BATCH_PIXELS = 2**25  # most pixels of the photographs in a batch (100 MB as RGB); a single photograph may have more
CONVERT = "Get it again if it is damaged; convert other formats, such as HEIC, to JPEG or PNG."
REMEDY = "name image files, folders of them, or a pattern such as 'in/*.jpg'"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction of a model for one photograph."""

    path: Path
    image: Image.Image  # RGB and upright, at its own size
    mask: np.ndarray  # class ids of shape (height, width), uint8, or uint16 for more than 256 classes
    class_shares: dict[str, float]  # class name → share of the mask's pixels, for each class that occurs
    # mean over the pixels of the predicted class's probability: its softmax score, or for a query model its share of
    # the sum of the pixel's scores
    mean_confidence: float


@dataclass(frozen=True, kw_only=True)
class Options:
    """How photographs are segmented.

    Args:
        size: size of the masks: `"native"`, that of each photograph, or `"model"`, that of the model's input.
        flip: average the scores with those of the mirrored image (takes twice the time).
        tile: side in pixels of square tiles that overlap by at least 25 %; each is segmented by itself. For
            photographs with far more detail than the model's input size keeps.
        batch_size: images or tiles per forward pass.
    """

    size: str = "native"
    flip: bool = False
    tile: int | None = None
    batch_size: int = 32

    def __post_init__(self):
        if self.size not in ("native", "model"):
            raise Refusal("size", f'{self.size!r} is neither "native" nor "model"')
        if self.tile is not None and (self.tile < 32 or self.size != "native"):
            raise Refusal("tile", "must be at least 32 pixels, and needs masks of native size")
        if self.batch_size < 1:
            raise Refusal("batch_size", f"must be at least 1, not {self.batch_size}")


def predict(
    model: Segmenter | str | Path,
    paths: Sequence[str | Path],
    *,
    device: str | None = None,
    dtype: str = "float32",
    **options,
) -> Iterator[Prediction | Problem]:
    """Segment photographs. Files are decoded in the background while the model computes.

    Args:
        model: a loaded model; or a run's folder or Hub id for [`load_segmenter`], with `device` and `dtype`.
        paths: files, folders (searched with their subfolders) and glob patterns.
        options: arguments of [`Options`].

    Yields:
        The [`Prediction`] of each file, or the [`Problem`] of a file that got no mask; in the order of
        [`expand_paths`].

    Raises:
        Refusal: before anything is predicted: when an option, a path or the model cannot be used.
    """
    chosen, files = Options(**options), expand_paths(paths)
    segmenter = model if isinstance(model, Segmenter) else load_segmenter(model, device=device, dtype=dtype)
    return predict_files(segmenter, files, chosen)


def expand_paths(paths: Sequence[str | Path]) -> list[Path]:
    """List the given files, the image files in folders (by suffix, sorted) and the matches of patterns, each once.

    Raises:
        Refusal: when a path gives no file, or a link in a folder leads to a folder that contains the link.
    """
    found: dict[str, Path] = {}
    for given in map(Path, paths):
        if os.path.isdir(given):
            matches, nothing = _images_in(given), "holds no image"
        else:
            names = [given] if os.path.isfile(given) else sorted(glob.glob(str(given), recursive=True))
            matches = [Path(name) for name in names if os.path.isfile(name)]
            nothing = "there is no such file, folder or match"
        if not matches:
            raise Refusal(given, nothing, REMEDY)
        for path in matches:
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise Refusal("", "no path given", REMEDY)
    return list(found.values())


def _images_in(root: Path) -> list[Path]:
    """The image files below a folder, sorted; the number of other files is printed. Broken links are included; reading
    one gives its [`Problem`]."""
    files, obstacles = find_files(root)
    for obstacle in obstacles:
        if Path(obstacle.place).is_dir():
            raise Refusal(problems=[obstacle])
    found = sorted([*files, *(Path(obstacle.place) for obstacle in obstacles)])
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    others = Counter(path.suffix.lower() or path.name for path in found if path.suffix.lower() not in IMAGE_SUFFIXES)
    if others:
        kinds = first((f"{count:,} {suffix}" for suffix, count in others.most_common()), 10)
        what = f"only {', '.join(sorted(IMAGE_SUFFIXES))} are taken from a folder; left out: {kinds}"
        say(f"{root}: {what}. Name pictures of other kinds to segment them", sys.stderr)
    return images


def read_image(path: Path, value_range: Sequence[float] | None) -> Image.Image | Problem:
    """Read an image file as training does, to upright RGB; or return the [`Problem`] of one that it would refuse."""
    try:
        return open_image({"path": str(path), "bytes": None}, upright=True, value_range=value_range)
    except PairError as error:
        return replace(error.problem, remedy=CONVERT) if error.problem.remedy == DAMAGED else error.problem


def predict_files(segmenter: Segmenter, files: Sequence[Path], options: Options) -> Iterator[Prediction | Problem]:
    """[`predict`] for a loaded model and files. A [`Refusal`] is raised by the call, not at the first item."""
    if segmenter.framing.resize == "crop" and (options.tile or options.size == "model"):
        height, width = segmenter.framing.size
        what = f"the model sees photographs at their own size, in windows of {width}×{height} pixels"
        raise Refusal("tile" if options.tile else "size", what, "leave the option out")
    return _predict_files(segmenter, files, options)


def _predict_files(segmenter: Segmenter, files: Sequence[Path], options: Options) -> Iterator[Prediction | Problem]:
    def read(path: Path) -> tuple[Path, Image.Image, Tensor | None] | Problem:
        image = read_image(path, segmenter.value_range)
        if isinstance(image, Problem):
            return image
        try:  # tiles are prepared when they are cut
            return path, image, None if options.tile else segmenter.prepare(image)
        except Exception as error:
            return _refused(segmenter, path, error)

    windows = options.tile or segmenter.framing.resize == "crop"
    predict_batch = _predict_windows if windows else _predict_whole
    decoding: list[Future] = []
    with ThreadPoolExecutor(max_workers=4) as pool:
        # decode the next batch while the model computes this one; decoding more would only take memory
        for ahead in chain(_batches(files, options.batch_size), [[]]):
            ready, decoding = decoding, [pool.submit(read, path) for path in ahead]
            yield from predict_batch(segmenter, [future.result() for future in ready], options)


def _batches(files: Sequence[Path], batch_size: int) -> Iterator[list[Path]]:
    """Group files into batches of at most `batch_size` files and `BATCH_PIXELS` (a single file may have more)."""
    batch, total = [], 0
    for path in files:
        try:
            with open_header({"path": str(path), "bytes": None}) as header:
                pixels = header.width * header.height
        except Exception:  # read_image will report the problem
            pixels = 0
        if batch and (len(batch) == batch_size or total + pixels > BATCH_PIXELS):
            yield batch
            batch, total = [], 0
        batch.append(path)
        total += pixels
    yield batch


def _predict_whole(segmenter: Segmenter, batch: list, options: Options) -> Iterator[Prediction | Problem]:
    """Segment images resized as a whole by the image processor; those of equal shape share a forward pass."""
    by_shape = defaultdict(list)
    for number, item in enumerate(batch):
        if not isinstance(item, Problem):
            by_shape[item[2].shape].append(number)
    framing = segmenter.framing
    for (_, *seen), numbers in by_shape.items():
        try:
            scores = segmenter.scores(torch.stack([batch[number][2] for number in numbers]), options.flip)
        except Exception as error:
            for number in numbers:
                batch[number] = _refused(segmenter, batch[number][0], error)
            continue
        for number, own in zip(numbers, scores, strict=True):
            path, image, _ = batch[number]
            size, box = (image.height, image.width), framing.box((image.height, image.width))
            if options.size == "model":
                size = (box[2] - box[0], box[3] - box[1]) if box else tuple(seen)
            ids, confidence = upsampled_argmax(own[None], size, segmenter.has_queries, framing.size, box)
            batch[number] = _prediction(segmenter, path, image, ids[0], confidence)
    yield from batch


def _predict_windows(segmenter: Segmenter, batch: list, options: Options) -> Iterator[Prediction | Problem]:
    """Segment each image in windows of the model's input size, or in tiles that are resized to it."""
    framing = segmenter.framing

    def of_windows(windows: Tensor) -> Tensor:
        scores = upsample(segmenter.scores(windows, options.flip), framing.size)
        return torch.stack([segmenter.probabilities(own) for own in scores])

    def of_tiles(image: Image.Image, boxes: list[Box]) -> Iterator[Tensor]:
        tiles = [image.crop((left, top, right, bottom)) for top, left, bottom, right in boxes]
        scores = segmenter.scores(torch.stack([segmenter.prepare(tile) for tile in tiles]), options.flip)
        size = tiles[0].height, tiles[0].width
        for own in scores:
            yield segmenter.probabilities(upsample_picture(own[None], size, framing.size, framing.box(size))[0])

    for item in batch:
        if not isinstance(item, Problem):
            path, image, pixel_values = item
            picture = image.height, image.width
            try:
                if options.tile:
                    tile = (options.tile, options.tile)
                    ids, confidence = strongest(blend(picture, tile, options.batch_size, partial(of_tiles, image)))
                else:
                    found = strongest(slide(pixel_values, framing.size, options.batch_size, of_windows))
                    ids, confidence = (cut(each, framing.box(picture)) for each in found)
                item = _prediction(segmenter, path, image, ids, confidence)
            except Exception as error:
                item = _refused(segmenter, path, error)
        yield item


def _refused(segmenter: Segmenter, path: Path, error: Exception) -> Problem:
    """The [`Problem`] of a photograph that cannot be segmented at its size. Other errors are raised: a model with one
    input size for all photographs refuses none of them, and a lack of memory is no fault of the photograph."""
    if segmenter.input_size or should_reduce_batch_size(error):
        raise error
    what = f"the model or its image processor cannot use a picture of this size ({one_line(error)})"
    remedy = "Enlarge it, or use a model with one input size for all pictures."
    return Problem(code="picture-size", place=str(path), what=what, remedy=remedy)


def _prediction(
    segmenter: Segmenter, path: Path, image: Image.Image, ids: Tensor, confidence: Tensor
) -> Prediction | Problem:
    mean_confidence = float(confidence.mean())
    if not math.isfinite(mean_confidence):
        what, remedy = "the model's scores for it are not numbers (NaN)", "Compute in float32, or use another model"
        return Problem(code="scores", place=str(path), what=what, remedy=remedy)
    names = segmenter.class_names
    shares: Counter[str] = Counter()  # classes may share a name
    for name, count in zip(names, torch.bincount(ids.flatten(), minlength=len(names)).tolist(), strict=True):
        if count:
            shares[name] += count / ids.numel()
    return Prediction(
        path=path,
        image=image,
        mask=ids.cpu().numpy().astype(np.uint8 if len(names) <= 256 else np.uint16),
        class_shares=dict(shares),
        mean_confidence=mean_confidence,
    )
