"""Fit pictures of any size to a model's input size, and map its output back to the pictures.

Training and inference share this file; Spaces get a copy of it without the rest of hf_seg.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import SegformerImageProcessor
from transformers.image_utils import get_image_size_for_max_height_width

OVERLAP = 0.25  # least overlap of two neighbouring windows, as a fraction of their side

Size = tuple[int, int]  # height and width
Box = tuple[int, int, int, int]  # top, left, bottom, right


def fitted_size(picture: Size, frame: Size) -> Size:
    """Return the largest size of a picture within a frame, with its aspect ratio kept. transformers' image processors
    compute the same for `max_height` and `max_width`; but here a side is at least 1, while theirs may be 0."""
    height, width = get_image_size_for_max_height_width(picture, *frame)
    return max(1, height), max(1, width)


def centered(inner: Size, outer: Size) -> Box:
    """The box of `inner` in the middle of `outer`."""
    top, left = ((outside - inside) // 2 for inside, outside in zip(inner, outer, strict=True))
    return top, left, top + inner[0], left + inner[1]


def letterboxed(picture: Size, frame: Size) -> Box:
    """The box of a picture that is resized to fit a frame, with its aspect ratio kept, in the middle of the frame."""
    return centered(fitted_size(picture, frame), frame)


def cut(values: Tensor, box: Box) -> Tensor:
    """Return the part of `values` `(…, height, width)` in a box, as a view."""
    top, left, bottom, right = box
    return values[..., top:bottom, left:right]


def pad(values: Tensor, size: Size, fill: float | Tensor) -> Tensor:
    """Put `values` `(…, height, width)` in the middle of a larger size, with `fill` around them."""
    padded = values.new_empty(*values.shape[:-2], *size)
    padded[...] = fill
    cut(padded, centered(values.shape[-2:], size)).copy_(values)
    return padded


def center_crop(values: Tensor, size: Size, fill: float) -> Tensor:
    """Crop `values` `(…, height, width)` to `size` about their centre; pad them with `fill` where they are smaller."""
    inner = tuple(map(min, values.shape[-2:], size))
    return pad(cut(values, centered(inner, values.shape[-2:])), size, fill)


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How an image processor fits pictures to the model's input: the `data.resize` of the run that saved it.

    The image processor of transformers resizes for `"letterbox"` but does not pad, and keeps the size for `"crop"`;
    this module does the padding and the windows. The centre crop of other image processors is switched off, so that
    every pixel of a photograph gets a class.
    """

    resize: Literal["stretch", "letterbox", "crop"]
    size: Size | None  # of the model's input; None for `"stretch"`, where the image processor resizes
    black: Tensor  # float32 of shape (3, 1, 1): a black pixel after normalisation

    @classmethod
    def of(cls, image_processor: Any) -> Framing:
        """Read the framing from the settings that [`hf_seg.models.build.build_image_processor`] saves."""
        resize, size = "stretch", None
        if isinstance(image_processor, SegformerImageProcessor):  # others have a crop_size of another meaning
            if not image_processor.do_resize:
                resize, size = "crop", image_processor.crop_size
            elif dict(image_processor.size).get("max_height"):
                resize, size = "letterbox", image_processor.pad_size
        if size is None:
            return cls(resize="stretch", size=None, black=torch.zeros(3, 1, 1))
        mean, std = [0, 0, 0], [1, 1, 1]
        if image_processor.do_normalize:
            mean, std = image_processor.image_mean, image_processor.image_std
        black = -torch.tensor(list(mean)) / torch.tensor(list(std))
        return cls(resize=resize, size=(size["height"], size["width"]), black=black[:, None, None])

    def frame(self, picture: Size) -> Size | None:
        """The size of a picture in the model's input, padding included; None where nothing is padded."""
        if self.resize == "crop":
            return max(picture[0], self.size[0]), max(picture[1], self.size[1])
        return self.size

    def box(self, picture: Size) -> Box | None:
        """The box of a picture in the model's input; None if the picture fills it."""
        if self.resize == "crop":
            return centered(picture, self.frame(picture))
        return letterboxed(picture, self.size) if self.resize == "letterbox" else None

    def prepare(self, image_processor: Any, image: Image.Image) -> Tensor:
        """Return the `pixel_values` of an RGB image, of shape `(3, height, width)`."""
        picture = image.height, image.width
        if self.resize == "letterbox" and 1 in (fitted := fitted_size(picture, self.size)):
            image = image.resize(fitted[::-1], Image.Resampling.BILINEAR)  # else its result has 0 pixels
        # a centre crop, such as MobileViT's, would leave the borders without a class
        whole = {"do_center_crop": False} if getattr(image_processor, "do_center_crop", None) else {}
        pixel_values = image_processor(image, return_tensors="pt", **whole)["pixel_values"][0]
        return pixel_values if self.size is None else pad(pixel_values, self.frame(picture), self.black)


def windows(size: Size, window: Size) -> list[Box]:
    """Return windows that cover `size`: evenly spaced from border to border, neighbours overlapping by at least a
    quarter. Where a side of `size` is shorter than the window, the window gets the length of that side."""
    (tops, height), (lefts, width) = (_starts(length, side) for length, side in zip(size, window, strict=True))
    return [(top, left, top + height, left + width) for top in tops for left in lefts]


def _starts(length: int, side: int) -> tuple[list[int], int]:
    """Return where windows begin along one side, and their length."""
    if length <= side:
        return [0], length
    count = 1 + math.ceil((length - side) / (side * (1 - OVERLAP)))
    return np.linspace(0, length - side, count).round().astype(int).tolist(), side


def blend(
    size: Size, window: Size, batch_size: int, probabilities: Callable[[list[Box]], Iterable[Tensor]]
) -> Iterator[Tensor]:
    """Compute the probabilities of a picture from those of its windows, with smaller weights near window borders.

    Args:
        probabilities: maps at most `batch_size` boxes to the probabilities of each box's pixels, of shape
            `(C, bottom - top, right - left)`.

    Yields:
        `torch.FloatTensor` of shape `(C, rows, width)`: strips from top to bottom, each as soon as no other window
        overlaps it. All at once would take 1 GB for 20 classes and 12 megapixels. They sum to 1 at each pixel.
    """
    rows = [list(group) for _, group in groupby(windows(size, window), key=lambda box: box[0])]
    tops = [row[0][0] for row in rows[1:]]
    blended = total = None
    for row, next_top in zip(rows, [*tops, size[0]], strict=True):
        top, _, bottom, _ = row[0]
        for start in range(0, len(row), batch_size):
            part = row[start : start + batch_size]
            for (_, left, _, right), own in zip(part, probabilities(part), strict=True):
                if blended is None:
                    blended, total = (
                        own.new_zeros(len(own), bottom - top, size[1]),
                        own.new_zeros(bottom - top, size[1]),
                    )
                weight = (_ramp(own.shape[1])[:, None] * _ramp(own.shape[2])).to(own.device)
                blended[:, :, left:right].addcmul_(own, weight)
                total[:, left:right].add_(weight)
        finished = next_top - top
        yield blended[:, :finished] / total[:finished]
        blended, total = (F.pad(part[..., finished:, :], (0, 0, 0, finished)) for part in (blended, total))


def slide(
    pixel_values: Tensor, window: Size, batch_size: int, probabilities: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """Cut windows out of `pixel_values` `(3, height, width)` and [`blend`] their probabilities, where `probabilities`
    maps `(batch, 3, *window)` to `(batch, C, *window)`."""

    def of_windows(boxes: list[Box]) -> Tensor:
        return probabilities(torch.stack([cut(pixel_values, box) for box in boxes]))

    return blend(tuple(pixel_values.shape[-2:]), window, batch_size, of_windows)


def strongest(strips: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the most probable class ids (int64) and their probabilities, each `(height, width)`, from [`blend`]."""
    confidence, ids = zip(*(strip.max(dim=0) for strip in strips), strict=True)
    return torch.cat(ids), torch.cat(confidence)


def _ramp(length: int) -> Tensor:
    position = torch.arange(length)
    return torch.minimum(position, length - 1 - position) + 1.0
