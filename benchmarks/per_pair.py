"""The baseline of several benchmarks: prepare data pair by pair with PIL, as training scripts commonly do."""

import numpy as np
import torch
from PIL import Image

from hf_seg.data import DatasetSpec

SIZE = 64  # pixels; height and width


class PerPair:
    """A transform for `Dataset.with_transform`: resize, scale to [0, 1], look up the labels.

    A pair gives `pixel_values`, float32 of shape `(3, 64, 64)`, and `labels`, integers of shape `(64, 64)`.
    """

    def __init__(self, spec: DatasetSpec):
        self.table = np.array(spec.label_table)

    def pair(self, image: Image.Image, mask: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        image = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        mask = mask.resize((SIZE, SIZE), Image.Resampling.NEAREST)
        pixel_values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return pixel_values, torch.from_numpy(self.table[np.array(mask)])

    def __call__(self, batch: dict) -> dict:
        pixel_values, labels = zip(*map(self.pair, batch["image"], batch["mask"]), strict=True)
        return {"pixel_values": list(pixel_values), "labels": list(labels)}
