"""Generated data sets in the shape of Oxford-IIIT Pet and of Cityscapes: no download, no file, the same every time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from io import BytesIO

import numpy as np
import PIL.Image

from hf_seg.data.sources import cityscapes, oxford_pet
from hf_seg.data.sources.synthetic.pet import draw_pet
from hf_seg.data.sources.synthetic.street import draw_street

# A picture depends only on this, its split and its number, so the first n pictures of a split are always the same.
SEED = 20261123
SPLIT_SIZES = {"train": 1024, "validation": 128, "test": 128}

GENERATED = {
    "homepage": None,
    "terms": "Drawn by hf_seg itself, not from photographs: no third party has rights in it.",
    "license_name": None,
    "split_rule": "a picture depends on its split and its number only, and no picture is in two splits.",
    "publish_images": True,
    "official_size": None,
    "limits": (
        "The data set was drawn by a program. A model trained on it knows nothing of real photographs, and its scores "
        "say nothing about them.",
    ),
}
PET_SPEC = replace(oxford_pet.SPEC, name="synthetic_pet", title="Generated pets", **GENERATED)
CITYSCAPES_SPEC = replace(cityscapes.SPEC, name="synthetic_cityscapes", title="Generated streets", **GENERATED)
DRAW = {"synthetic_pet": draw_pet, "synthetic_cityscapes": draw_street}


def generate(name: str, limits: Mapping[str, int | None]) -> dict[str, dict[str, list[dict]]]:
    """Draw and encode the pictures of a generated data set: 1,280 pairs take some seconds and a few MB of memory.

    Args:
        name (`str`): `synthetic_pet` or `synthetic_cityscapes`.
        limits (`Mapping[str, int | None]`): split → how many of its first pictures to draw; None: all of them.

    Returns:
        `dict[str, dict[str, list[dict]]]`: split → columns `image` (JPEG) and `mask` (PNG, raw values as in the real
        data set's files), each a list of `{"path": None, "bytes": bytes}` as `datasets.Image` stores it.
    """
    columns = {}
    for split, size in SPLIT_SIZES.items():
        pairs = [_draw_and_encode(name, split, index) for index in range(size)[: limits[split]]]
        encoded = zip(("image", "mask"), zip(*pairs, strict=True), strict=True)
        columns[split] = {column: [{"path": None, "bytes": each} for each in files] for column, files in encoded}
    return columns


@cache  # a launch of several recipes draws each picture once
def _draw_and_encode(name: str, split: str, index: int) -> tuple[bytes, bytes]:
    image, mask = DRAW[name](np.random.default_rng([SEED, list(SPLIT_SIZES).index(split), index]))
    return _encode(image, "JPEG", quality=92), _encode(mask, "PNG")


def _encode(image: PIL.Image.Image, file_format: str, **options: int) -> bytes:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
