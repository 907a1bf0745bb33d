"""Batched inference: photographs in, masks out. `predict_files` writes them to a folder."""

from __future__ import annotations

import glob
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_seg.data.columns import UprightImage
from hf_seg.data.file_search import find_files
from hf_seg.inference.segmenter import PredictError, Segmenter, load_segmenter
from hf_seg.problem import PairError

__all__ = [
    "PredictError",
    "Prediction",
    "Segmenter",
    "Unreadable",
    "expand_paths",
    "load_segmenter",
    "predict",
    "read_image",
]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
OVERLAP = 0.25  # of two neighbouring tiles, as a share of their side
BATCH_PIXELS = 2**25  # of the photographs in a batch (100 MB as RGB); one photograph alone may have more


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model made of one photograph.

    Args:
        path (`Path`): the photograph's file.
        image (`PIL.Image.Image`): the photograph, RGB and upright, at its own size.
        mask (`np.ndarray` of shape `(height, width)`, uint8, or uint16 above 256 classes): class ids.
        class_shares (`dict[str, float]`): share of the mask's pixels in [0, 1], of each class that occurs.
        mean_confidence (`float`): mean over the pixels of the winning class's softmax score, in [0, 1]; for
            Mask2Former and MaskFormer of its share of the pixel's scores.
    """

    path: Path
    image: Image.Image
    mask: np.ndarray
    class_shares: dict[str, float]
    mean_confidence: float


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A file that got no mask, and why: it is no image, or none that models are trained on."""

    path: Path
    reason: str


def predict(
    model: Segmenter | str | Path,
    paths: Sequence[str | Path],
    *,
    size: str = "native",
    flip: bool = False,
    tile: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
    dtype: str = "float32",
) -> Iterator[Prediction | Unreadable]:
    """Segment photographs; files are decoded in the background while the model computes.

    Args:
        model ([`Segmenter`], `str` or `Path`): a loaded model, or what [`load_segmenter`] takes.
        paths (`Sequence[str | Path]`): files, folders (searched with their subfolders) and glob patterns.
        size (`str`, *optional*, defaults to `"native"`): of the masks: that of each photograph, or with `"model"` that
            which the model saw.
        flip (`bool`, *optional*): average with the mirror image's scores (twice the time).
        tile (`int`, *optional*): side in pixels of windows that slide over the photograph with 25 % overlap, each of
            which is segmented by itself; for photographs with far more detail than the model's input size keeps.
        batch_size (`int`, *optional*, defaults to 32): images or tiles a forward pass.
        device, dtype: see [`load_segmenter`].

    Yields:
        [`Prediction`] or [`Unreadable`], one for each file, in the order of [`expand_paths`].

    Raises:
        PredictError: before anything is predicted: when the model or a path cannot be used.
    """
    check_options(size=size, tile=tile, batch_size=batch_size)
    files = expand_paths(paths)
    segmenter = model if isinstance(model, Segmenter) else load_segmenter(model, device=device, dtype=dtype)
    return _predict(segmenter, files, size, flip, tile, batch_size)


def check_options(*, size: str = "native", tile: int | None = None, batch_size: int = 32, flip: bool = False) -> None:
    """Refuse options of [`predict`] that mean nothing, before a model is loaded and before anything is written.

    Raises:
        PredictError: naming the option.
    """
    if size not in ("native", "model"):
        raise PredictError(f'size: {size!r} is neither "native" nor "model"')
    if tile is not None and (tile < 32 or size != "native"):
        raise PredictError("tile: takes at least 32 pixels, and masks of native size")
    if batch_size < 1:
        raise PredictError(f"batch_size: takes at least 1, not {batch_size}")


def expand_paths(paths: Sequence[str | Path]) -> list[Path]:
    """Files, the image files in folders (by suffix, sorted, `._*` left out) and the matches of patterns, each once.

    Raises:
        PredictError: when a path does not exist, a pattern matches nothing, a folder holds no image, or a link in it
            leads to a folder that it lies in.
    """
    found: dict[str, Path] = {}
    for given in map(Path, paths):
        if os.path.isdir(given):
            matches = _images_in(given)
        elif os.path.isfile(given):
            matches = [given]
        else:
            matches = [Path(path) for path in sorted(glob.glob(str(given), recursive=True)) if os.path.isfile(path)]
        if not matches:
            what = "holds no image" if os.path.isdir(given) else "there is no such file, folder or match"
            raise PredictError(f"{given}: {what}; name image files, folders of them, or a pattern such as 'in/*.jpg'")
        for path in matches:
            found.setdefault(os.path.abspath(path), path)
    if not found:
        raise PredictError("no path given; name image files, folders of them, or a pattern such as 'in/*.jpg'")
    return list(found.values())


def _images_in(root: Path) -> list[Path]:
    """The image files below a folder, in order; a link to nothing is one, whose record will say so."""
    files, obstacles = find_files(root)
    for obstacle in obstacles:
        if obstacle.path.is_dir():
            raise PredictError(f"{obstacle.path}: {obstacle.reason}. {obstacle.remedy}")
    found = [*files, *(obstacle.path for obstacle in obstacles)]
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def read_image(path: Path) -> Image.Image | Unreadable:
    """Read an image file as training does: RGB, turned upright; what training refuses is [`Unreadable`]."""
    try:
        return UprightImage().decode_example({"path": str(path), "bytes": None})
    except PairError as error:
        return Unreadable(path=path, reason=f"{error.problem.what}. {error.problem.remedy}")


def _predict(segmenter, files, size, flip, tile, batch_size) -> Iterator[Prediction | Unreadable]:
    def read(path: Path):
        image = read_image(path)
        if isinstance(image, Unreadable):
            return image
        processor = None if tile else segmenter.image_processor  # a tile gets its pixel_values when it is cut
        return path, image, processor and processor(image, return_tensors="pt")["pixel_values"][0]

    decoding: list = []
    with ThreadPoolExecutor(max_workers=4) as pool:
        # a batch ahead is decoded while this one is computed; more would only fill the memory
        for ahead in itertools.chain(_batches(files, batch_size), [[]]):
            ready, decoding = decoding, [pool.submit(read, path) for path in ahead]
            batch = [ready.pop(0).result() for _ in range(len(ready))]
            if tile:
                for item in batch:
                    yield (
                        item if isinstance(item, Unreadable) else _tiled(segmenter, *item[:2], flip, tile, batch_size)
                    )
            elif batch:
                yield from _whole(segmenter, batch, size, flip)


def _batches(files: Sequence[Path], batch_size: int) -> Iterator[list[Path]]:
    """Files for one forward pass each: at most `batch_size`, and no more pixels than `BATCH_PIXELS`."""
    batch, total = [], 0
    for path in files:
        pixels = _pixels(path)
        if batch and (len(batch) == batch_size or total + pixels > BATCH_PIXELS):
            yield batch
            batch, total = [], 0
        batch.append(path)
        total += pixels
    yield batch


def _pixels(path: Path) -> int:
    """How many pixels an image file says it has; none of a file that says nothing, which is not decoded either."""
    try:
        with Image.open(path) as file:
            return file.width * file.height
    except Exception:  # read_image says what is wrong with it
        return 0


def _whole(segmenter: Segmenter, batch: list, size: str, flip: bool) -> Iterator[Prediction | Unreadable]:
    """Each image resized as a whole by the image processor; those that end up of one shape go together."""
    predicted: dict[Path, Prediction | Unreadable] = {}
    readable = sorted((item for item in batch if not isinstance(item, Unreadable)), key=lambda item: item[2].shape)
    for _, group in itertools.groupby(readable, key=lambda item: item[2].shape):
        group = list(group)
        scores = segmenter.scores(torch.stack([pixel_values for *_, pixel_values in group]), flip)
        for (path, image, pixel_values), own in zip(group, scores, strict=True):
            target = (image.height, image.width) if size == "native" else tuple(pixel_values.shape[-2:])
            predicted[path] = _prediction(segmenter, path, image, segmenter.probabilities(own, target))
    for item in batch:
        yield item if isinstance(item, Unreadable) else predicted[item[0]]


def _tiled(segmenter: Segmenter, path: Path, image: Image.Image, flip: bool, tile: int, batch_size: int):
    """Class scores of overlapping windows, blended with weights that fall towards a window's border."""
    boxes = [
        (left, top, min(left + tile, image.width), min(top + tile, image.height))
        for top in _starts(image.height, tile)
        for left in _starts(image.width, tile)
    ]
    scores = torch.zeros(len(segmenter.class_names), image.height, image.width, device=segmenter.model.device)
    for start in range(0, len(boxes), batch_size):
        part = boxes[start : start + batch_size]
        crops = [image.crop(box) for box in part]
        pixel_values = segmenter.image_processor(crops, return_tensors="pt")["pixel_values"]
        for (left, top, right, bottom), own in zip(part, segmenter.scores(pixel_values, flip), strict=True):
            target = (bottom - top, right - left)
            weight = _ramp(target[0])[:, None] * _ramp(target[1])
            scores[:, top:bottom, left:right] += segmenter.probabilities(own, target) * weight.to(scores.device)
    return _prediction(segmenter, path, image, scores / scores.sum(dim=0))


def _starts(length: int, tile: int) -> list[int]:
    """Where windows begin: evenly spread, the last one ending at the border, neighbours overlapping by a quarter."""
    if length <= tile:
        return [0]
    count = 1 + int(np.ceil((length - tile) / (tile * (1 - OVERLAP))))
    return np.linspace(0, length - tile, count).round().astype(int).tolist()


def _ramp(length: int) -> Tensor:
    position = torch.arange(length)
    return torch.minimum(position, length - 1 - position) + 1.0


def _prediction(segmenter: Segmenter, path: Path, image: Image.Image, scores: Tensor) -> Prediction | Unreadable:
    confidence, ids = scores.max(dim=0)
    mean_confidence = float(confidence.mean())
    if not math.isfinite(mean_confidence):
        reason = "the model's scores of it are not numbers (NaN). Compute in float32, or use another model"
        return Unreadable(path=path, reason=reason)
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
