"""What training and evaluation read batches from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_seg.data.pairs import StoredPair, map_pairs

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_seg.data.geometry import Size
    from hf_seg.data.transforms import SegTransform


class PreparedPairs(torch.utils.data.Dataset):
    """The pairs of one split as `SegTransform.prepare` makes them, read a whole batch at a time."""

    decodes = False  # each time that a pair is read

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch, as torch's loaders ask for it.

        Returns:
            `dict`: `pixel_values`, uint8 of shape `(batch, 3, height, width)`; `labels`, uint8 of shape
            `(batch, height, width)`; `index`, int64 of shape `(batch,)`: the positions asked for.
        """
        raise NotImplementedError

    def count_labels(self) -> np.ndarray:
        """Pixels of each label, 255 included, in all masks as they are prepared: int64 of shape `(256,)`. The padding
        of a letterbox may be left out, and pictures that are cropped count as a whole."""
        raise NotImplementedError


class UncachedPairs(PreparedPairs):
    """Decodes pairs each time that they are read."""

    decodes = True

    def __init__(self, dataset: Dataset, transform: SegTransform):
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return self.transform.prepare(self.dataset[list(indices)]) | {"index": torch.as_tensor(indices)}

    def count_labels(self) -> np.ndarray:
        return decode_and_count(self.dataset, self.transform)


class CachedPairs(PreparedPairs):
    """Reads pairs from arrays, in memory or mapped from a folder: the rows that are asked for, and nothing else."""

    def __init__(self, pixel_values: np.ndarray, labels: np.ndarray, folder: Path | None = None):
        self.pixel_values, self.labels, self.folder = pixel_values, labels, folder

    @classmethod
    def open(cls, folder: Path) -> CachedPairs:
        """Map the files of a cache; raises OSError, ValueError or EOFError when they are not there or not whole."""
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pixel_values", "labels")), folder)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows = np.asarray(indices)
        return {
            "pixel_values": torch.from_numpy(self.pixel_values[rows]),
            "labels": torch.from_numpy(self.labels[rows]),
            "index": torch.from_numpy(rows),
        }

    def count_labels(self) -> np.ndarray:
        return sum(count_pixels(self.labels[start : start + 64]) for start in range(0, len(self), 64))

    def __reduce__(self):
        # pickled as it is, a memory-mapped array would travel to each worker in full
        return (CachedPairs.open, (self.folder,)) if self.folder else super().__reduce__()


def black_pairs(count: int, size: Size) -> CachedPairs:
    """Black pictures of the first class, as many as there are to be, in no memory."""
    nothing = np.zeros((1, 1, 1, 1), np.uint8)
    return CachedPairs(np.broadcast_to(nothing, (count, 3, *size)), np.broadcast_to(nothing[0], (count, *size)))


def count_pixels(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=256)  # which makes 8 bytes of 1, so not of too many at a time


def decode_and_count(dataset: Dataset, transform: SegTransform) -> np.ndarray:
    """What `count_labels` gives of pairs that are not kept: their masks are decoded, on all cores."""
    decode = dataset.features["mask"].decode_example

    def count(pair: StoredPair) -> np.ndarray:
        return count_pixels(transform.prepare_mask(decode(pair.mask)))

    counted = map_pairs(count, {"train": dataset}, desc="Counting the pixels of each class")
    return sum(counts for _, counts in counted)
