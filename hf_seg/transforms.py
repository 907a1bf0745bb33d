"""`SegTransform`: photographs and masks, transformed as one, from a batch of PIL images to tensors."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_seg.data.spec import INVALID, DataError, DatasetSpec

AUGMENTATIONS = ("none", "flip", "standard")


class SegTransform:
    """Turn a batch of `image` and `mask` columns into `pixel_values` and `labels`; for `Dataset.with_transform`.

    The convention, tested against torchvision and equal to the image processor that is saved with the model:
    the image becomes uint8 RGB and is resized as a tensor with bilinear interpolation and antialias, the aspect ratio
    is not kept; the mask is mapped by the data set's label table and resized with `NEAREST_EXACT`, whose sample points
    are the pixel centres that bilinear interpolation uses too (plain `NEAREST` is half a pixel off); pixels are then
    scaled by 1/255 to [0, 1], and normalised by ImageNet's mean and standard deviation only if asked.

    Args:
        image_size (`int`): height and width of the result, in pixels.
        spec ([`DatasetSpec`]): gives the label table and the ignore index.
        augment (`str`, *optional*, defaults to `"none"`): `"none"`; `"flip"`: mirrored left to right with probability
            0.5; `"standard"`: a random crop of 50–100 % of the area (aspect ratio 3/4 to 4/3), flip, and a change of
            brightness, contrast, saturation (±40 %) and hue (±10 %) of the image alone. Geometry is drawn once for an
            image and its mask. Random numbers come from torch's global generator.
        normalize (`str`, *optional*, defaults to `"none"`): `"none"` or `"imagenet"`.
    """

    def __init__(self, *, image_size: int, spec: DatasetSpec, augment: str = "none", normalize: str = "none"):
        if augment not in AUGMENTATIONS:
            raise ValueError(f"augment: {augment!r} is not one of {', '.join(AUGMENTATIONS)}")
        self.spec, self.augment, self.normalize = spec, augment, normalize
        self.size = [image_size, image_size]
        self.table = np.asarray(spec.label_table, dtype=np.int16)
        self.crop = v2.RandomResizedCrop(self.size, scale=(0.5, 1.0))
        self.color = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Tensor]:
        """Transform a batch.

        Args:
            batch (`dict`): `image`, a list of PIL images of any mode and size; `mask`, a list of single-channel PIL
                images, each of its image's size.

        Returns:
            `dict`: `pixel_values`, float32 of shape `(batch, 3, image_size, image_size)`; `labels`, int64 of shape
            `(batch, image_size, image_size)`: class ids, or `spec.ignore_index`.

        Raises:
            DataError: when a mask is of another size than its image or holds a value outside the label table.
        """
        pairs = [self._joint(*self._tensors(*pair)) for pair in zip(batch["image"], batch["mask"], strict=True)]
        pixel_values = F.to_dtype(torch.stack([image for image, _ in pairs]), torch.float32, scale=True)
        if self.normalize == "imagenet":
            pixel_values = F.normalize(pixel_values, list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))
        labels = torch.stack([mask for _, mask in pairs]).to(torch.int64)
        return {"pixel_values": pixel_values, "labels": labels}

    def _tensors(self, image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
        if image.size != mask.size:
            raise DataError(
                f"an image of {image.width}×{image.height} pixels has a mask of {mask.width}×{mask.height}: "
                "an image and its mask must be of one size"
            )
        ids = np.asarray(mask)
        if ids.ndim != 2:
            raise DataError(f"a mask of mode {mask.mode} has several channels: masks hold one class id a pixel")
        # 16-bit and 32-bit masks: what does not fit the table must not wrap round to a class
        labels = self.table[ids.astype(np.uint8)] if ids.dtype in (np.uint8, bool) else self._wide(ids)
        if (labels == INVALID).any():
            found = np.unique(ids[labels == INVALID]).tolist()
            raise DataError(f"a mask holds the values {found}, which the classes of {self.spec.name} do not have")
        pixels = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(labels.astype(np.uint8))

    def _wide(self, ids: np.ndarray) -> np.ndarray:
        inside = (ids >= 0) & (ids < len(self.table))
        return np.where(inside, self.table[np.where(inside, ids, 0)], INVALID)

    def _joint(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask[None]
        if self.augment == "standard":
            window = self.crop.make_params([image])
            image, mask = F.crop(image, **window), F.crop(mask, **window)
        if self.augment != "none" and torch.rand(()) < 0.5:
            image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
        image = F.resize(image, self.size, InterpolationMode.BILINEAR, antialias=True)
        # as a plain tensor: torchvision's own mask kernel would use NEAREST, half a pixel away from the image
        mask = F.resize(mask, self.size, InterpolationMode.NEAREST_EXACT)
        if self.augment == "standard":
            image = self.color(image)
        return image, mask[0]
