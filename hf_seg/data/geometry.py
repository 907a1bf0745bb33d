"""How pictures of any size meet a model's one input size, and how its output meets the pictures again.

Shared by training and by all that uses a trained model; Spaces get this file without the rest of hf_seg.
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
from transformers.image_utils import get_image_size_for_max_height_width

OVERLAP = 0.25  # of two neighbouring windows, as a share of their side

Size = tuple[int, int]  # height and width
Box = tuple[int, int, int, int]  # top, left, bottom, right


def fitted_size(picture: Size, frame: Size) -> Size:
    """The largest size of a picture, its shape kept, within a frame; that which image processors of transformers give
    it for `max_height` and `max_width`. But a side is at least 1, where they make 0 of a long and thin picture's."""
    height, width = get_image_size_for_max_height_width(picture, *frame)
    return max(1, height), max(1, width)


def centered(inner: Size, outer: Size) -> Box:
    """Where `inner` lies in the middle of `outer`."""
    top, left = ((outside - inside) // 2 for inside, outside in zip(inner, outer, strict=True))
    return top, left, top + inner[0], left + inner[1]


def letterboxed(picture: Size, frame: Size) -> Box:
    """Where a picture lies that keeps its shape, in the middle of a frame that it is made to fit."""
    return centered(fitted_size(picture, frame), frame)


def cut(values: Tensor, box: Box) -> Tensor:
    """The part of `(…, height, width)` in a box."""
    top, left, bottom, right = box
    return values[..., top:bottom, left:right]


def pad(values: Tensor, size: Size, fill: float | Tensor) -> Tensor:
    """`(…, height, width)` in the middle of a larger size; `fill` is what is around it."""
    padded = values.new_empty(*values.shape[:-2], *size)
    padded[...] = fill
    cut(padded, centered(values.shape[-2:], size)).copy_(values)
    return padded


def center_crop(values: Tensor, size: Size, fill: float) -> Tensor:
    """The middle of `(…, height, width)`, padded where that is smaller."""
    inner = tuple(map(min, values.shape[-2:], size))
    return pad(cut(values, centered(inner, values.shape[-2:])), size, fill)


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How an image processor's pictures meet the model: the `data.resize` of the run that saved it.

    transformers' own image processor resizes for `"letterbox"` and leaves the padding out, and does nothing for
    `"crop"`; the padding and the windows are done here. A centre crop of other image processors is left out: every
    pixel of a photograph gets a class.
    """

    resize: Literal["stretch", "letterbox", "crop"]
    size: Size | None  # of the model's input; None where only the image processor knows
    black: Tensor  # of shape (3, 1, 1): what it makes of black

    @classmethod
    def of(cls, image_processor: Any) -> Framing:
        """Read it from the settings that [`hf_seg.models.build.build_image_processor`] saves."""
        resize, size = "stretch", None
        if image_processor.do_resize:
            limits = dict(image_processor.size)
            if getattr(image_processor, "do_pad", None) and limits.get("max_height"):
                resize, size = "letterbox", image_processor.pad_size
        elif not getattr(image_processor, "do_center_crop", None) and getattr(image_processor, "crop_size", None):
            resize, size = "crop", image_processor.crop_size
        if size is None:
            return cls(resize="stretch", size=None, black=torch.zeros(3, 1, 1))
        mean, std = [0, 0, 0], [1, 1, 1]
        if image_processor.do_normalize:
            mean, std = image_processor.image_mean, image_processor.image_std
        black = -torch.tensor(list(mean)) / torch.tensor(list(std))
        return cls(resize=resize, size=(size["height"], size["width"]), black=black[:, None, None])

    def frame(self, picture: Size) -> Size | None:
        """The size at which the model's input holds a picture, padding included; None where nothing is padded."""
        if self.resize == "crop":
            return max(picture[0], self.size[0]), max(picture[1], self.size[1])
        return self.size

    def box(self, picture: Size) -> Box | None:
        """Where in the model's input a picture lies; None where it is all of it."""
        if self.resize == "crop":
            return centered(picture, self.frame(picture))
        return letterboxed(picture, self.size) if self.resize == "letterbox" else None

    def prepare(self, image_processor: Any, image: Image.Image) -> Tensor:
        """`pixel_values` of an RGB image, of shape `(3, height, width)`."""
        picture = image.height, image.width
        if self.resize == "letterbox" and 1 in (fitted := fitted_size(picture, self.size)):
            image = image.resize(fitted[::-1], Image.Resampling.BILINEAR)  # else the image processor leaves nothing
        # a centre crop, such as MobileViT's, would leave the borders without a class
        whole = {"do_center_crop": False} if getattr(image_processor, "do_center_crop", None) else {}
        pixel_values = image_processor(image, return_tensors="pt", **whole)["pixel_values"][0]
        return pixel_values if self.size is None else pad(pixel_values, self.frame(picture), self.black)


def windows(size: Size, window: Size) -> list[Box]:
    """Windows that cover a size: evenly spread, the last ones ending at its borders, neighbours overlapping by at
    least a quarter. Where a size is smaller than the window, the window is as small."""
    (tops, height), (lefts, width) = (_starts(length, side) for length, side in zip(size, window, strict=True))
    return [(top, left, top + height, left + width) for top in tops for left in lefts]


def _starts(length: int, side: int) -> tuple[list[int], int]:
    """Where windows begin along one side, and how long they are."""
    if length <= side:
        return [0], length
    count = 1 + math.ceil((length - side) / (side * (1 - OVERLAP)))
    return np.linspace(0, length - side, count).round().astype(int).tolist(), side


def blend(
    size: Size, window: Size, batch_size: int, probabilities: Callable[[list[Box]], Iterable[Tensor]]
) -> Iterator[Tensor]:
    """Probabilities of a picture from those of its windows, which weigh less towards their borders.

    Args:
        probabilities: from at most `batch_size` boxes to those of each one's pixels,
            `(C, bottom - top, right - left)`.

    Yields:
        `torch.FloatTensor` of shape `(C, rows, width)`, from the top down, as soon as no other window reaches them:
        all at once would take a gigabyte for 20 classes and 12 megapixels. They sum to 1 a pixel.
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
    """[`blend`] the probabilities of windows, `(batch, 3, *window)` to `(batch, C, *window)`, that are cut out of
    `pixel_values` `(3, height, width)`."""

    def of_windows(boxes: list[Box]) -> Tensor:
        return probabilities(torch.stack([cut(pixel_values, box) for box in boxes]))

    return blend(tuple(pixel_values.shape[-2:]), window, batch_size, of_windows)


def strongest(strips: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Class ids and their probabilities, each of shape `(height, width)`, from what [`blend`] gives."""
    confidence, ids = zip(*(strip.max(dim=0) for strip in strips), strict=True)
    return torch.cat(ids), torch.cat(confidence)


def _ramp(length: int) -> Tensor:
    position = torch.arange(length)
    return torch.minimum(position, length - 1 - position) + 1.0
