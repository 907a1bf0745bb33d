"""Pictures at their own size, for `data.resize` "crop": random windows for training, whole pictures otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hf_seg.data.geometry import Box, Size, pad
from hf_seg.data.prepared import PreparedPairs, UncachedPairs, count_pixels

SCALES = (0.5, 2.0)  # range of the picture's scale, before a window of the model's size is cut out
MOST = 0.75  # a window is drawn again if one class has this fraction of its labelled pixels or more,
DRAWS = 10  # up to this many draws: MMSegmentation's `cat_max_ratio` for Cityscapes


class StoredPictures(PreparedPairs):
    """Pictures of different sizes, concatenated in flat arrays, which may be memory-mapped from a folder. A batch must
    have exactly one.

    Args:
        pixels, labels: uint8 of shape `(3 * n,)` and `(n,)`, with n pixels in all; colours are the last axis.
        sizes: height and width of each picture, integers of shape `(pictures, 2)`.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, sizes: np.ndarray, folder: Path | None = None):
        self.pixels, self.labels, self.sizes, self.folder = pixels, labels, sizes, folder
        self.starts = np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(axis=1))])
        if len(labels) != self.starts[-1] or len(pixels) != 3 * len(labels):
            raise ValueError("its arrays differ in length")

    @classmethod
    def open(cls, folder: Path) -> StoredPictures:
        """Memory-map the files of a cache; raise OSError, ValueError or EOFError if they are missing or incomplete."""
        pixels, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pixel_values", "labels"))
        return cls(pixels, labels, np.load(folder / "sizes.npy"), folder)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Views of a pair: `pixel_values`, uint8 `(3, height, width)`, and `labels`, uint8 `(height, width)`."""
        (start, end), size = self.starts[index : index + 2], self.sizes[index]
        pixels, labels = self.pixels[3 * start : 3 * end], self.labels[start:end]
        return {"pixel_values": pixels.reshape(*size, 3).transpose(2, 0, 1), "labels": labels.reshape(size)}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        (index,) = indices
        pair = {key: torch.from_numpy(np.array(values))[None] for key, values in self[index].items()}
        return pair | {"index": torch.as_tensor(indices)}

    def count_labels(self) -> np.ndarray:
        return sum(count_pixels(self[index]["labels"]) for index in range(len(self)))

    def __reduce__(self):
        # pickling a memory-mapped array would send all of its data to each worker
        return (StoredPictures.open, (self.folder,)) if self.folder else super().__reduce__()


class RandomCrops(PreparedPairs):
    """One random window of each picture, for training; drawn again each epoch.

    The windows depend only on `seed`, the epoch and the picture's index, so a resumed run sees the same ones.

    Args:
        size: height and width of the windows.
    """

    def __init__(self, pictures: StoredPictures | UncachedPairs, size: Size, ignore_index: int):
        self.pictures, self.size, self.ignore_index = pictures, size, ignore_index
        self.seed = self.epoch = 0
        self.decodes = pictures.decodes

    def set_epoch(self, epoch: int) -> None:  # accelerate's loaders call it
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        images, masks = zip(*map(self._crop, indices), strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.stack(masks), "index": torch.as_tensor(indices)}

    def count_labels(self) -> np.ndarray:
        return self.pictures.count_labels()

    def _crop(self, index: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([self.seed, self.epoch, int(index)])
        pair = self.pictures[index]
        (top, left, bottom, right), inner = draw_crop(np.asarray(pair["labels"]), self.size, self.ignore_index, random)
        windows = (np.asarray(pair[key])[..., top:bottom, left:right].copy("K") for key in ("pixel_values", "labels"))
        pixels, labels = map(torch.from_numpy, windows)
        image = F.resize(pixels, list(inner), InterpolationMode.BILINEAR, antialias=True)
        # takes the pixel under the centre of the target pixel, as for all masks
        mask = F.resize(labels[None], list(inner), InterpolationMode.NEAREST_EXACT)[0]
        return pad(image, self.size, 0), pad(mask, self.size, self.ignore_index)


def draw_crop(labels: np.ndarray, size: Size, ignore_index: int, random: np.random.Generator) -> tuple[Box, Size]:
    """Draw a scale of the picture, and a window of `size` in the scaled picture.

    Args:
        labels: class ids of the picture, `(height, width)`.

    Returns:
        `tuple`: the window as a box in the unscaled picture; and the size to resize it to, which is smaller than
        `size` where the scaled picture is smaller.
    """
    scale = random.uniform(*SCALES)
    sides = list(zip(labels.shape, size, strict=True))
    height, width = (min(length, round(side / scale)) for length, side in sides)
    inner_height, inner_width = (min(side, max(1, round(length * scale))) for length, side in sides)
    for _ in range(DRAWS):
        top = int(random.integers(labels.shape[0] - height, endpoint=True))
        left = int(random.integers(labels.shape[1] - width, endpoint=True))
        counts = np.bincount(labels[top : top + height, left : left + width].ravel(), minlength=256)
        counts[ignore_index] = 0
        if 0 < counts.max() < MOST * counts.sum():
            break
    return (top, left, top + height, left + width), (inner_height, inner_width)
