"""Which column of a data set holds the photographs, and which the masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Features, Image, Value

from hf_seg.problem import DataError

# lower case; the names under which published data sets have them
IMAGE_NAMES = {"image", "images", "pixel_values", "img", "photo", "photograph", "picture", "rgb", "input"}
MASK_NAMES = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask"),
    *("semantic_segmentation", "semantic_mask", "seg", "gt", "ground_truth", "target", "label_map"),
}
PICTURES = (
    "Images and masks must be columns of pictures: datasets.Image, a struct with bytes, or bytes. Arrays and lists of "
    "ids become pictures by map and PIL.Image.fromarray."
)


def find_columns(name: str, features: Features, image: str | None, mask: str | None) -> tuple[str, str]:
    """The names of the image and the mask column.

    Args:
        name (`str`): of the data set, for messages.
        features (`Features`): its columns.
        image (`str`, *optional*), mask (`str`, *optional*): the names, where a recipe gives them. None: the one column
            of pictures with a usual name, else the only column of pictures that is left.

    Returns:
        `tuple[str, str]`: image and mask column.

    Raises:
        DataError: when a column is not there or holds no pictures, or when more than one could be meant.
    """
    pictures = [column for column, feature in features.items() if holds_pictures(feature)]
    for key, given in (("image_column", image), ("mask_column", mask)):
        if given is not None and given not in features:
            raise DataError(f'{name}: has no column "{given}" (data.{key}). {_listed(features)}')
        if given is not None and given not in pictures:
            raise DataError(
                f'{name}: the column "{given}" (data.{key}) holds no pictures. {_listed(features)} {PICTURES}'
            )
    image = image or _named(pictures, IMAGE_NAMES, other=mask)
    mask = mask or _named(pictures, MASK_NAMES, other=image)
    image = image or _last(pictures, mask)
    mask = mask or _last(pictures, image)
    for key, found in (("image_column", image), ("mask_column", mask)):
        if found is None:
            remedy = f"Set data.{key} (`hf-seg init` has --{key})." if len(pictures) > 1 else PICTURES
            what = key.replace("_", " ")
            raise DataError(f"{name}: which column is the {what} cannot be told. {_listed(features)} {remedy}")
    return image, mask


def holds_pictures(feature: Any) -> bool:
    """Whether a column's type is one that `datasets.Image` can decode: itself, a struct with bytes, or bytes."""
    if isinstance(feature, Mapping):
        return "bytes" in feature and feature.keys() <= {"bytes", "path"}
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _named(pictures: list[str], names: set[str], other: str | None) -> str | None:
    found = [column for column in pictures if column.lower() in names and column != other]
    return found[0] if len(found) == 1 else None


def _last(pictures: list[str], other: str | None) -> str | None:
    """The only column of pictures besides `other`; which of two or more is not guessed."""
    left = [column for column in pictures if column != other]
    return left[0] if len(left) == 1 and other is not None else None


def _listed(features: Features) -> str:
    return f"Its columns: {', '.join(f'{column} ({_type(feature)})' for column, feature in features.items())}."


def _type(feature: Any) -> str:
    if isinstance(feature, Mapping):
        return f"struct of {', '.join(feature)}"
    return getattr(feature, "dtype", None) if isinstance(feature, Value) else type(feature).__name__
