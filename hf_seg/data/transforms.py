"""`SegTransform` turns a batch of PIL images and their masks into tensors, with the same geometry for both."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from hf_seg.data.augment import CROP_SCALE, STRONG_CROP_SCALE, crop_and_resize, draw_boxes, jitter_colors, rotate
from hf_seg.data.geometry import Box, Size, fitted_size, letterboxed, pad
from hf_seg.data.spec import INVALID, DatasetSpec
from hf_seg.problem import DataError
from hf_seg.recipe.keys import NORMALIZATIONS

if TYPE_CHECKING:
    from hf_seg.recipe.keys import DataRecipe

AUGMENTATIONS = ("none", "flip", "standard", "strong")


def build_transforms(data: DataRecipe, spec: DatasetSpec) -> dict[str, SegTransform]:
    """Build the transform of each split of a recipe's data; only training pairs are augmented."""
    common = {"size": data.size, "resize": data.resize, "spec": spec, "normalize": data.normalize}
    plain = SegTransform(**common)
    return {"train": SegTransform(augment=data.augment, **common), "validation": plain, "test": plain}


def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch unchanged: torch's loaders expect a list of samples, but prepared pairs are read in batches."""
    return batch


class SegTransform:
    """Turn a batch of `image` and `mask` columns into `pixel_values` and `labels`.

    Images are transformed as in the image processor that is saved with the model; tests compare with torchvision. The
    image becomes uint8 RGB and is resized as a tensor with bilinear interpolation and antialias. The mask is mapped by
    the data set's label table and resized with `NEAREST_EXACT`, which samples at the same pixel centres as bilinear
    interpolation (plain `NEAREST` is half a pixel off). Pixels are then scaled by 1/255 to [0, 1] and, if requested,
    normalised by a mean and a standard deviation.

    It works in two steps. [`~SegTransform.prepare`] turns pictures into small uint8 tensors; its result for a pair is
    always the same, so it can be cached. [`~SegTransform.finish`] turns these into the model's input; it does all that
    is random, on whole batches, on the device of the batch. Calling the transform does both.

    Args:
        size (`tuple[int, int]`): height and width of the result, in pixels.
        resize (`str`): `"stretch"`: the aspect ratio is not kept; `"letterbox"`: it is kept, and the borders on both
            sides are black with the label `ignore_index`; `"crop"`: pictures keep their own size here, and training
            gets windows of `size` from [`hf_seg.data.crops`].
        augment (`str`): `"flip"`: mirrored left to right with probability 0.5; `"standard"`: a random crop of 50–100 %
            of the area (aspect ratio 3/4 to 4/3, both relative to the image's own), flip, and a change of brightness,
            contrast, saturation (±40 %) and hue (±36°) of the image only; `"strong"`: the same, but rotated first by
            up to 30° either way, and with a crop of 25–100 %. An image and its mask get the same geometry. Crops are
            taken from a copy of 1.5 (standard) or 2 (strong) times `size`, so that hardly any is enlarged. With
            `resize` `"crop"` there is no second crop.
        normalize (`str`): a key of `NORMALIZATIONS`; with any other value, pixels are not normalised. (`"auto"` must
            be resolved before: it depends on the model.)
    """

    def __init__(
        self, *, size: Size, spec: DatasetSpec, resize: str = "stretch", augment: str = "none", normalize: str = "none"
    ):
        if augment not in AUGMENTATIONS:
            raise ValueError(f"augment: {augment!r} is not one of {', '.join(AUGMENTATIONS)}")
        self.size, self.spec, self.resize, self.augment, self.normalize = size, spec, resize, augment, normalize
        self.table = np.asarray(spec.label_table, dtype=np.int16)

    @property
    def prepared_size(self) -> Size:
        """Height and width, in pixels, of the result of `prepare`; with `resize` `"crop"`, of the training windows."""
        # the smallest crop has a side of at least √(0.5 · 3/4) ≈ 0.61 of the image's, or √(0.25 · 3/4) ≈ 0.43
        factor = 1 if self.resize == "crop" else {"standard": 1.5, "strong": 2}.get(self.augment, 1)
        height, width = self.size
        return int(height * factor), int(width * factor)

    def fitted(self, picture: Size, size: Size) -> Size:
        """The size to which a picture is resized for an input of `size`."""
        return fitted_size(picture, size) if self.resize == "letterbox" else size

    def box(self, picture: Size) -> Box | None:
        """The box of a picture in the model's input; None if the picture fills it."""
        return letterboxed(picture, self.size) if self.resize == "letterbox" else None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Tensor]:
        return self.finish(self.prepare(batch))

    def prepare(self, batch: dict[str, list[Any]]) -> dict[str, Tensor]:
        """Resize a batch of pairs.

        Args:
            batch (`dict`): `image`, a list of PIL images of any mode and size; `mask`, a list of single-channel PIL
                images, each of its image's size.

        Returns:
            `dict`: `pixel_values`, uint8 of shape `(batch, 3, *prepared_size)`; `labels`, uint8 of shape
            `(batch, *prepared_size)`: class ids, or `spec.ignore_index`. With `resize` `"crop"`, height and width are
            those of the pictures, which must all have the same size.

        Raises:
            DataError: when a mask does not fit its image or the label table.
        """
        pairs = [self._resize(*pair) for pair in zip(batch["image"], batch["mask"], strict=True)]
        images, masks = zip(*pairs, strict=True)
        return {"pixel_values": torch.stack(images), "labels": torch.stack(masks)}

    def finish(self, batch: dict[str, Tensor], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Augment a prepared batch and make it the model's input.

        Args:
            batch (`dict`): what [`~SegTransform.prepare`] returns, on any device.
            generator (`torch.Generator`, *optional*): a CPU generator; torch's global one if not given.

        Returns:
            `dict`, on the same device: `pixel_values`, float32 of shape `(batch, 3, *size)`; `labels`, int64 of shape
            `(batch, *size)`: class ids, or `spec.ignore_index`. With `resize` `"crop"`, the given size is kept.
        """
        pixel_values, labels = batch["pixel_values"], batch["labels"]
        pixel_values = F.to_dtype(pixel_values, torch.float32, scale=True)
        if self.augment != "none":
            flipped = (torch.rand(len(labels), generator=generator) < 0.5).to(labels.device)
        if self.augment == "strong":
            pixel_values, labels = rotate(pixel_values, labels, generator)
        if self.augment != "none" and (self.augment == "flip" or self.resize == "crop"):
            pixel_values = torch.where(flipped[:, None, None, None], pixel_values.flip(-1), pixel_values)
            labels = torch.where(flipped[:, None, None], labels.flip(-1), labels)
        elif self.augment != "none":
            scale = STRONG_CROP_SCALE if self.augment == "strong" else CROP_SCALE
            boxes = draw_boxes(len(labels), generator, scale).to(labels.device)
            pixel_values, labels = crop_and_resize(pixel_values, labels, boxes, flipped, self.size)
        if self.augment in ("standard", "strong"):
            pixel_values = jitter_colors(pixel_values, generator)
        if self.normalize in NORMALIZATIONS:
            pixel_values = F.normalize(pixel_values, *NORMALIZATIONS[self.normalize])
        return {"pixel_values": pixel_values, "labels": labels.to(torch.int64)}

    def _resize(self, image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
        if image.size != mask.size:
            what = f"an image of {image.width}×{image.height} pixels has a mask of {mask.width}×{mask.height}"
            raise DataError(self.spec.name, what, "both must have the same size", code="size-mismatch")
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)
        if self.resize == "crop":
            return pixels, torch.from_numpy(self.prepare_mask(mask))
        size = self.prepared_size
        inner = self.fitted((image.height, image.width), size)
        pixels = F.resize(pixels, list(inner), InterpolationMode.BILINEAR, antialias=True)
        labels = torch.from_numpy(self.prepare_mask(mask))
        if self.resize == "letterbox":
            pixels, labels = pad(pixels, size, 0), pad(labels, size, self.spec.ignore_index)
        return pixels, labels

    def prepare_mask(self, mask: Image.Image) -> np.ndarray:
        """`labels` of [`~SegTransform.prepare`] for one mask, without letterbox padding: uint8 `(height, width)`."""
        if len(mask.getbands()) > 1:
            what = f"a mask of mode {mask.mode} has several channels"
            raise DataError(self.spec.name, what, "masks hold one class id per pixel", code="mask-kind")
        # a histogram in C is faster than a look-up of every pixel
        values = np.flatnonzero(mask.histogram()) if mask.mode in ("L", "P") else np.unique(np.asarray(mask))
        strange = values[self._look_up(values) == INVALID]
        if len(strange):
            what = f"a mask holds the values {strange.tolist()}, which belong to no class of {self.spec.name}"
            raise DataError(self.spec.name, what, code="mask-values")
        # Pillow's NEAREST samples at pixel centres, like torchvision's NEAREST_EXACT
        if self.resize != "crop":
            height, width = self.fitted((mask.height, mask.width), self.prepared_size)
            mask = mask.resize((width, height), Image.Resampling.NEAREST)
        return self.class_ids(mask)

    def class_ids(self, mask: Image.Image) -> np.ndarray:
        """Map a mask, at its own size, to uint8 of shape `(height, width)`: class ids or `spec.ignore_index`."""
        return self._look_up(np.asarray(mask)).astype(np.uint8)

    def _look_up(self, ids: np.ndarray) -> np.ndarray:
        """Class ids. Values of 16- and 32-bit masks outside the table become `INVALID`; they never wrap to a class."""
        ids = ids.astype(np.int64)
        inside = (ids >= 0) & (ids < len(self.table))
        return np.where(inside, self.table[np.where(inside, ids, 0)], INVALID)
