"""An image column that gives the pixels of a file as they are stored."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import PIL.Image
from datasets import Image
from datasets.features.features import register_feature


@dataclass
class StoredImage(Image):
    """`datasets.Image` without its EXIF rotation.

    Masks carry no EXIF, and those of the official data sets belong to the stored pixels. `datasets.Image` would turn a
    photograph with an orientation tag and leave its mask as it is; after a turn by 180° not even the sizes would tell.
    """

    _type: str = field(default="StoredImage", init=False, repr=False)

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> PIL.Image.Image:
        if isinstance(value, PIL.Image.Image):  # as in datasets.Image: decoding what is decoded changes nothing
            return value
        with PIL.Image.open(value["path"] if value["bytes"] is None else BytesIO(value["bytes"])) as image:
            image.load()
            return image.convert(self.mode) if self.mode and self.mode != image.mode else image


with warnings.catch_warnings():
    # Registered, so that tables which datasets writes and reads again (map, save_to_disk) keep this type. The warning
    # that the function is experimental is for us to know, and not for everybody who trains a model.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(StoredImage, "StoredImage")
