"""Whose export a folder is: which one of the layouts of signs.py it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from hf_seg.data.sources.signs import (
    IMAGE_WORDS,
    LAYOUTS,
    MASK_WORDS,
    PARTS,
    SIGNS,
    Layout,
    find_lists,
    folders_of,
    names_of,
    plain,
)
from hf_seg.data.sources.split import SPLIT_WORDS
from hf_seg.problem import DataError, did_you_mean
from hf_seg.text import printable


def is_picture_folder(root: Path) -> bool:
    """Whether a folder is laid out as photographs and masks, or nearly so, and is no folder of tables."""
    places = [root, *(root / name for name in folders_of(root) if plain(name) in SPLIT_WORDS)]
    return any(plain(name) in IMAGE_WORDS | MASK_WORDS for place in places for name in folders_of(place))


def find_layout(root: Path, chosen: str | None = None) -> Layout:
    """How a folder is laid out.

    Args:
        chosen (`str`, *optional*): the name of one of the layouts that it matches.

    Raises:
        DataError: when it has no layout of docs/data.md, not the chosen one, or several.
    """
    found = {layout.name: layout for sign in SIGNS for layout in sign(root)}
    whole = [layout for layout in found.values() if layout.whole]
    found |= {layout.name: layout for layout in find_lists(root, whole)}
    if chosen in found:
        return found[chosen]
    if chosen is not None:
        remedy = did_you_mean(chosen, found, f"It matches {', '.join(found)}." if found else LAYOUTS)
        raise DataError(root, f'does not match the layout "{chosen}"', remedy)
    refined = {name for layout in found.values() for name in layout.refines}
    left = [layout for layout in found.values() if layout.name not in refined]
    if len(left) == 1:
        return left[0]
    if left:
        names = ", ".join(map(str, left))
        remedy = f"Choose with `hf-seg init DIR --layout {left[0].name}` (data.layout in a recipe), or move the rest."
        raise DataError(root, f"matches {len(left)} layouts: {names}", remedy)
    folders = folders_of(root)
    shown = f"its folders are {printable(', '.join(folders[:10]))}" if folders else "it holds no folder"
    missing = [part for part in PARTS if part not in folders]
    raise DataError(root, f"has no {', no '.join(missing)}; {shown}", f"{LAYOUTS}{_hint(root)}")


def _hint(root: Path) -> str:
    """What was probably meant by a folder without a known layout."""
    strange = [name for name in names_of(root) if "\\" in name]
    if not strange:
        return ""
    return (
        f" There are {len(strange)} names with a backslash, such as {printable(strange[0])}: they come from an "
        "archive that was made on Windows. Unpack it again with `unzip`, which makes folders of them."
    )


def find_ending(images: Collection[str], masks: Collection[str]) -> str:
    """What all masks' names have more than their images', such as `_mask`; empty when a mask is named as its image."""
    endings = count_endings(images, masks)
    if not endings or not set(images).isdisjoint(masks):
        return ""
    ending = endings.most_common(1)[0][0]
    return ending if all(name.endswith(ending) for name in masks) else ""


def count_endings(images: Collection[str], masks: Iterable[str]) -> Counter[str]:
    """What follows the longest name of an image with which a mask's name begins → how many masks have it."""
    endings: Counter[str] = Counter()
    for name in masks:
        for end in range(len(name) - 1, 0, -1):
            if not name[end].isalnum() and name[:end] in images:  # a digit more is another number
                endings[name[end:]] += 1
                break
    return endings
