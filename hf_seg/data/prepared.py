"""Datasets that training and evaluation read batches from."""

from __future__ import annotations

import os
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
    """The pairs of one split, as `SegTransform.prepare` returns them, read a whole batch at a time."""

    decodes = False  # whether a pair is decoded each time it is read

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch. The loaders of torch call this method.

        Returns:
            `dict`: `pixel_values`, uint8 of shape `(batch, 3, height, width)`; `labels`, uint8 of shape
            `(batch, height, width)`; `index`, int64 of shape `(batch,)`: the given `indices`.
        """
        raise NotImplementedError

    def count_labels(self) -> np.ndarray:
        """Count the pixels of each label, 255 included, in all prepared masks: int64 of shape `(256,)`. Letterbox
        padding may be left out, and pictures that training crops are counted whole."""
        raise NotImplementedError


class UncachedPairs(PreparedPairs):
    """Pairs that are decoded each time they are read."""

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
    """Pairs in arrays, in memory or memory-mapped from a folder; only the requested rows are read.

    Args:
        pixel_values, labels: uint8 of shape `(pairs, 3, height, width)` and `(pairs, height, width)`.
    """

    def __init__(self, pixel_values: np.ndarray, labels: np.ndarray, folder: Path | None = None):
        self.pixel_values, self.labels, self.folder = pixel_values, labels, folder

    @classmethod
    def open(cls, folder: Path) -> CachedPairs:
        """Memory-map the files of a cache; raise OSError, ValueError or EOFError if they are missing or incomplete."""
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
        # pickling a memory-mapped array would send all of its data to each worker
        return (CachedPairs.open, (self.folder,)) if self.folder else super().__reduce__()


def default_workers(on_gpu: bool | None = None) -> int:
    """Return how many processes decode the pictures that no cache holds, unless a recipe says it. Training on a CPU
    needs the cores itself. `on_gpu`: by default, whether this machine has a GPU."""
    on_gpu = torch.accelerator.is_available() if on_gpu is None else on_gpu
    return min(8, (os.cpu_count() or 1) // 2) if on_gpu else 0


def black_pairs(count: int, size: Size) -> CachedPairs:
    """`count` black pictures whose pixels all have the first class; they take no memory."""
    nothing = np.zeros((1, 1, 1, 1), np.uint8)
    return CachedPairs(np.broadcast_to(nothing, (count, 3, *size)), np.broadcast_to(nothing[0], (count, *size)))


def count_pixels(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels.ravel(), minlength=256)  # makes 8 bytes of 1, so pass only some masks at a time


def decode_and_count(dataset: Dataset, transform: SegTransform) -> np.ndarray:
    """Return `count_labels` of pairs that are not cached: decode their masks, on all cores."""
    decode = dataset.features["mask"].decode_example

    def count(pair: StoredPair) -> np.ndarray:
        return count_pixels(transform.prepare_mask(decode(pair.mask)))

    counted = map_pairs(count, {"train": dataset}, desc="Counting the pixels of each class")
    return sum(counts for _, counts in counted)
