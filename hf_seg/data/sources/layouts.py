"""Where the photographs and masks of your own folder lie, by the names of its folders and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from hf_seg.data.file_search import IMAGE_SUFFIXES, READABLE
from hf_seg.data.pairs import ALL
from hf_seg.data.sources.split import SPLIT_WORDS, SPLITS, find_splits, lists_all
from hf_seg.problem import DataError
from hf_seg.text import printable

MASK_SUFFIXES = {".png", ".bmp", ".tif", ".tiff", ".gif"}
PARTS = ("images", "masks")
LAYOUTS = (
    "A folder of pictures holds images/ and masks/, in which there may be train/, val/ and test/; or it holds train/, "
    "val/ and test/ with images/ and masks/ each. Without val/ or test/, a part of train is drawn for it."
)


def is_picture_folder(root: Path) -> bool:
    """Whether a folder is laid out as photographs and masks, or nearly so, and is no folder of tables."""
    places = [root, *(root / name for name in _names(root) if name.lower() in SPLIT_WORDS)]
    return any((place / part).is_dir() for place in places for part in PARTS)


def find_layout(root: Path) -> dict[str, tuple[Path, Path]]:
    """Where the pictures of a folder lie.

    Returns:
        `dict[str, tuple[Path, Path]]`: each split that has a folder, or `ALL` alone → the folders of its images and of
        its masks, of which the second may be absent in validation and test.

    Raises:
        DataError: when it has no layout of docs/data.md, or a bit of two.
    """
    names = _names(root)
    folders = [name for name in names if (root / name).is_dir()]
    plain = [part for part in PARTS if part in folders]
    named = [name for name in folders if name.lower() in SPLIT_WORDS]
    split = [name for name in named if name in SPLITS or any((root / name / part).is_dir() for part in PARTS)]
    if plain and split:
        raise DataError(root, f"holds both {', '.join([*plain, *split])}: leave one of the layouts", LAYOUTS)
    if plain == list(PARTS):
        return _find_inner_splits(root) or {ALL: (root / "images", root / "masks")}
    if split:
        own = find_splits(str(root), named)
        wanted = [f"{name}/images" for name in own.values()] + [f"{own['train']}/masks"]
        missing = [place for place in sorted(wanted) if not (root / place).is_dir()]
        if not missing:
            return {part: (root / name / "images", root / name / "masks") for part, name in own.items()}
    else:
        missing = [part for part in PARTS if part not in plain]
    found = f"its folders are {printable(', '.join(folders[:10]))}" if folders else "it holds no folder"
    raise DataError(root, f"has no {', no '.join(missing)}; {found}", f"{LAYOUTS}{_hint(root, names)}")


def _find_inner_splits(root: Path) -> dict[str, tuple[Path, Path]] | None:
    """The layout `images/train`, `masks/train`, …; None where the folders in `images` are no splits."""
    inner = {part: _names(root / part) for part in PARTS}
    held_out = [name for name in inner["images"] if SPLIT_WORDS.get(name.lower(), "train") != "train"]
    if not any((root / "images" / name).is_dir() for name in held_out) or lists_all(root):
        return None
    own = {}
    for part, names in inner.items():
        folders = [name for name in names if (root / part / name).is_dir()]
        own[part] = find_splits(str(root / part), folders)
        pictures = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        others = sorted({*folders, *pictures} - {*own[part].values()})
        if others:
            what = f"holds {', '.join(own[part].values())} and, beside these, {', '.join(others[:3])}"
            remedy = "Move it into one of them, or say in split.json of each pair where it belongs."
            raise DataError(root / part, f"{what}: which split is that?", remedy)
    images, masks = (own[part] for part in PARTS)
    either = masks | images
    return {
        split: (root / "images" / images.get(split, name), root / "masks" / masks.get(split, name))
        for split, name in sorted(either.items(), key=lambda item: SPLITS.index(item[0]))
    }


def _names(place: Path) -> list[str]:
    try:
        return sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(place, f"cannot be read: {error.strerror}", READABLE) from None


def _hint(root: Path, names: list[str]) -> str:
    """What was probably meant by a folder without a known layout."""
    strange = [name for name in names if "\\" in name]
    if strange:
        return (
            f" There are {len(strange)} names with a backslash, such as {printable(strange[0])}: they come from an "
            "archive that was made on Windows. Unpack it again with `unzip`, which makes folders of them."
        )
    for place in (root, *(root / name for name in names if name.lower() in SPLIT_WORDS and (root / name).is_dir())):
        stems = {Path(name).stem for name in _names(place) if Path(name).suffix.lower() in IMAGE_SUFFIXES}
        if endings := count_endings(stems, stems):
            return (
                f' In {place}, masks seem to lie beside their images, with "{endings.most_common(1)[0][0]}" at the '
                "end of their names: move the masks to masks/ and the others to images/."
            )
    return ""


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
