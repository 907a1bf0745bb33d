"""The layouts that a folder of photographs and masks may have, each with the sign by which it is known.

`SIGNS` is the table: each function gives the layouts of its kind that a folder matches, also incomplete ones.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

from hf_seg.data.file_search import IMAGE_SUFFIXES, READABLE, find_files
from hf_seg.data.pairs import ALL
from hf_seg.data.sources.split import SPLIT_WORDS, SPLITS, find_splits, lists_all
from hf_seg.problem import DataError
from hf_seg.text import printable

MASK_SUFFIXES = {".png", ".bmp", ".tif", ".tiff", ".gif"}
PARTS = ("images", "masks")
IMAGE_WORDS = {"images", "image", "imgs", "img", "img_dir", "jpegimages"}
MASK_WORDS = {
    *("masks", "mask", "labels", "label", "annotations", "annots", "annot", "gt", "ann_dir", "segmentationclass"),
}
LAYOUTS = (
    "A folder of pictures holds images/ and masks/, in which there may be train/, val/ and test/; or it holds train/, "
    "val/ and test/ with images/ and masks/ each. Without val/ or test/, a part of train is drawn for it. "
    "docs/data.md has the other layouts."
)
TOOLS = {("img_dir", "ann_dir"): "MMSegmentation", ("jpegimages", "segmentationclass"): "Pascal VOC"}
_SPLIT_AND_REST = re.compile(rf"({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})[-_. ]*(\w*)")
_KIND = re.compile(r"[-_. ](masks?|labels?|gt|seg|label(train)?ids)$|\.(jpe?g|png)$", re.IGNORECASE)
_PICTURE = rf".+(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})"
_PAIR = re.compile(rf"({_PICTURE}?)[\s,]+({_PICTURE})", re.IGNORECASE)
PREVIEW = "preview.png"  # which `init` writes beside the pictures


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where the pairs of one split lie: in two folders, which may be the same, matched by name."""

    images: Path
    masks: Path  # may be absent in validation and test
    # how the names of their files end before the suffix; other files are none of this layout's
    image_ending: str = ""
    mask_ending: str = ""
    deep: bool = True  # with the folders below
    listed: tuple[str, ...] | None = None  # only these names, in a list
    pairs: tuple[tuple[Path, Path], ...] | None = None  # instead of matching
    source: Path | None = None  # the list


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which a folder may be read."""

    name: str  # what `data.layout` and `--layout` call it
    find_parts: Callable[[], dict[str, Part]]  # each split that there is, or `ALL` alone; refuses what is incomplete
    tool: str = ""  # the program or data set whose folders look so
    refines: Collection[str] = ()  # the names of layouts that say less of the same pairs
    whole: bool = False  # without splits

    def __str__(self) -> str:
        return f"{self.name} ({self.tool})" if self.tool else self.name


def _two_folders(root: Path) -> Iterator[Layout]:
    """`images` + `masks`, with splits in both or without."""
    for images, masks in product(_pick(root, IMAGE_WORDS, PARTS[0]), _pick(root, MASK_WORDS, PARTS[1])):
        name, tool = f"{images}+{masks}", TOOLS.get((plain(images), plain(masks)), "")
        whole = {ALL: Part(images=root / images, masks=root / masks)}
        yield Layout(name=name, tool=tool, find_parts=partial(dict, whole), whole=True)
        inner = [folder for folder in folders_of(root / images) if SPLIT_WORDS.get(plain(folder), "train") != "train"]
        if inner and not lists_all(root):
            if (images, masks) == ("images", "annotations") and "validation" in inner:
                tool = "ADE20K"
            parts = partial(_find_inner_splits, root / images, root / masks)
            yield Layout(name=f"{images}/SPLIT+{masks}/SPLIT", tool=tool, refines=[name], find_parts=parts)


def _find_inner_splits(images: Path, masks: Path) -> dict[str, Part]:
    """The folders of the splits in two folders, which must hold no picture beside these."""
    own = {}
    for place in (images, masks):
        names = names_of(place)
        folders = [name for name in names if (place / name).is_dir()]
        own[place] = find_splits(str(place), folders)
        pictures = [name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        others = sorted({*folders, *pictures} - {*own[place].values()})
        if others:
            what = f"holds {', '.join(own[place].values())} and, beside these, {', '.join(others[:3])}"
            remedy = "Move it into one of them, or say in split.json of each pair where it belongs."
            raise DataError(place, f"{what}: which split is that?", remedy)
    either = own[masks] | own[images]
    return {
        split: Part(
            images=images / own[images].get(split, either[split]), masks=masks / own[masks].get(split, either[split])
        )
        for split in SPLITS
        if split in either
    }


def _split_folders(root: Path) -> Iterator[Layout]:
    """`train`, `val` and `test` with `images` and `masks` each."""
    named = [name for name in folders_of(root) if plain(name) in SPLIT_WORDS]
    words = [
        sorted({plain(folder) for name in named for folder in _pick(root / name, known, part)})
        for known, part in ((IMAGE_WORDS, PARTS[0]), (MASK_WORDS, PARTS[1]))
    ]
    # a `test` beside `images` and `masks`, of which nobody knows what it is for
    there = {plain(name) for name in folders_of(root)}
    unclear = there & IMAGE_WORDS and there & MASK_WORDS and not set(SPLITS).isdisjoint(named)
    if not any(words) and not unclear:
        return
    for images, masks in product(words[0] or PARTS[:1], words[1] or PARTS[1:]):
        parts = partial(_find_outer_splits, root, named, images, masks)
        yield Layout(name=f"SPLIT/{images}+SPLIT/{masks}", find_parts=parts)


def _find_outer_splits(root: Path, named: list[str], images: str, masks: str) -> dict[str, Part]:
    def place(split: str, word: str) -> Path:
        return root / split / next((name for name in folders_of(root / split) if plain(name) == word), word)

    own = find_splits(str(root), named)
    wanted = [place(name, images) for name in own.values()] + [place(own["train"], masks)]
    _require(root, wanted)
    return {split: Part(images=place(name, images), masks=place(name, masks)) for split, name in own.items()}


def _require(root: Path, wanted: Iterable[Path]) -> None:
    if missing := sorted(path.relative_to(root).as_posix() for path in wanted if not path.is_dir()):
        what = f"has no {', no '.join(missing)}; its folders are {printable(', '.join(folders_of(root)[:10]))}"
        raise DataError(root, what, LAYOUTS)


def _sibling_folders(root: Path) -> Iterator[Layout]:
    """`train` + `trainannot`, `val` + `valannot`, …"""
    words: tuple[dict[str, dict[str, str]], ...] = ({}, {})  # images and masks: what follows the split → split → name
    for name in folders_of(root):
        found = _SPLIT_AND_REST.fullmatch(plain(name))
        for known, kind in zip(({"", *IMAGE_WORDS}, MASK_WORDS), words, strict=True):
            if found and found[2] in known:
                kind.setdefault(found[2], {})[found[1]] = name
    for (image_word, images), (mask_word, masks) in product(words[0].items(), words[1].items()):
        tool = "CamVid" if (image_word, mask_word) == ("", "annot") else ""
        parts = partial(_find_siblings, root, images, masks)
        yield Layout(name=f"SPLIT{image_word}+SPLIT{mask_word}", tool=tool, find_parts=parts)


def _find_siblings(root: Path, images: dict[str, str], masks: dict[str, str]) -> dict[str, Part]:
    own = find_splits(str(root), images)
    parts = {
        split: Part(images=root / images[word], masks=root / masks.get(word, f"{images[word]}: masks"))
        for split, word in own.items()
    }
    _require(root, [parts["train"].masks])
    return parts


def _one_folder(root: Path) -> Iterator[Layout]:
    """`x.jpg` beside `x_mask.png`, in one folder or in those of the splits: the ending that pairs the most files."""
    own = [name for name in folders_of(root) if plain(name) in SPLIT_WORDS]
    for prefix, named in (("", []), ("SPLIT/", own)):
        places = [root / name for name in named] if prefix else [root]
        endings: Counter[str] = Counter()
        for place in places:
            stems = {Path(name).stem for name in names_of(place) if Path(name).suffix.lower() in IMAGE_SUFFIXES}
            endings.update(filter(None, (ending_beside(name, stems) for name in stems)))
        tool = "Roboflow" if any((place / "_classes.csv").is_file() for place in places) else ""
        for ending in sorted(ending for ending, count in endings.items() if count == max(endings.values())):
            name, parts = f"{prefix}NAME+{prefix}NAME{ending}", partial(_find_beside, root, named, ending)
            yield Layout(name=name, tool=tool, find_parts=parts, whole=not prefix)


def _find_beside(root: Path, named: list[str], ending: str) -> dict[str, Part]:
    own = find_splits(str(root), named) if named else {ALL: ""}
    folders = {split: root / name for split, name in own.items()}
    return {
        split: Part(images=folder, masks=folder, mask_ending=ending, deep=bool(named))
        for split, folder in folders.items()
    }


def ending_beside(name: str, names: Collection[str]) -> str:
    """The ending by which a file is the mask of another one among `names`; empty where it is none."""
    found = _KIND.search(name)
    return found[0] if found and name[: found.start()] in names else ""


def _named_as_folders(root: Path) -> Iterator[Layout]:
    """`leftImg8bit/…/x_leftImg8bit.png` + `gtFine/…/x_gtFine_labelIds.png`: files are named as the folders."""
    folders = folders_of(root)
    for images in folders:
        pictures = (path for path in (root / images).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        first = next(pictures, None)
        if first is None or not first.stem.endswith(f"_{images}"):
            continue
        for masks in folders:
            of_folder = re.compile(rf".*(_{re.escape(masks)}(_\w+)?)")
            found = [of_folder.fullmatch(path.stem) for path in find_files(root / masks)[0] if masks != images]
            kinds = {match[1]: match[2] or "" for match in found if match}
            ids = [kind for kind, rest in kinds.items() if not rest or re.fullmatch(r"_label\w*ids", rest.lower())]
            for kind in sorted(ids or kinds):
                parts = partial(_find_named, root / images, root / masks, f"_{images}", kind)
                tool = "like Cityscapes" if (images, masks) == ("leftImg8bit", "gtFine") else ""
                yield Layout(name=f"{images}+{kind[1:]}", tool=tool, find_parts=parts)


def _find_named(images: Path, masks: Path, image_ending: str, mask_ending: str) -> dict[str, Part]:
    in_splits = any(plain(folder) in SPLIT_WORDS for folder in folders_of(images))
    parts = _find_inner_splits(images, masks) if in_splits else {ALL: Part(images=images, masks=masks)}
    endings = {"image_ending": image_ending, "mask_ending": mask_ending}
    return {split: replace(part, **endings) for split, part in parts.items()}


def find_lists(root: Path, whole: list[Layout]) -> Iterator[Layout]:
    """`train.txt`, `val.txt` and `test.txt` of names in a layout without splits, or of lines `image mask`."""
    for place, suffix in ((root, "lists"), (root / "ImageSets" / "Segmentation", "ImageSets")):
        names = [name for name in names_of(place) if name.lower().endswith(".txt")] if place.is_dir() else []
        files = {Path(name).stem: place / name for name in names}
        named = [stem for stem in files if plain(stem) in SPLIT_WORDS]
        if not any(SPLIT_WORDS[plain(stem)] == "train" for stem in named):
            if not files or place == root:
                continue
            named = []  # CVAT's default.txt: which pictures have masks
        lines = {stem: _read_list(file) for stem, file in files.items() if stem in named or not named}
        pairs = {stem: [_PAIR.fullmatch(line) for line in listed] for stem, listed in lines.items()}
        if any(map(any, pairs.values())):
            if any(match and _inside(root, match[1]).is_file() for found in pairs.values() for match in found[:100]):
                parts = partial(_find_listed_pairs, root, files, lines)
                yield Layout(name=suffix, find_parts=parts, refines=[layout.name for layout in whole])
        elif not lists_all(root):
            for layout in whole:
                tool = "Pascal VOC" if place != root else layout.tool
                parts = partial(_find_listed, root, layout, files, named, lines)
                yield Layout(name=f"{layout.name}+{suffix}", tool=tool, find_parts=parts, refines=[layout.name])


def _read_list(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(file, f"cannot be read: {error}", READABLE) from None
    return [line.strip().strip('"') for line in lines if line.strip()]


def _find_listed(
    root: Path, layout: Layout, files: dict[str, Path], named: list[str], lines: dict[str, list[str]]
) -> dict[str, Part]:
    (part,) = layout.find_parts().values()
    if not named:
        every = tuple(dict.fromkeys(name for listed in lines.values() for name in listed))
        return {ALL: replace(part, listed=every, source=next(iter(files.values())))}
    own = find_splits(str(root), named)
    return {split: replace(part, listed=tuple(lines[stem]), source=files[stem]) for split, stem in own.items()}


def _find_listed_pairs(root: Path, files: dict[str, Path], lines: dict[str, list[str]]) -> dict[str, Part]:
    parts = {}
    for split, stem in find_splits(str(root), lines).items():
        matches = [(line, _PAIR.fullmatch(line)) for line in lines[stem]]
        if wrong := next((line for line, match in matches if not match), None):
            raise DataError(files[stem], f"{wrong} is no line `image mask`, as others are", "Correct the list.")
        pairs = tuple((_inside(root, match[1]), _inside(root, match[2])) for _, match in matches)
        if outside := next((path for pair in pairs for path in pair if not path.is_relative_to(root)), None):
            what = f"names {outside}, which is outside the folder"
            raise DataError(files[stem], what, "Name files by their paths in the folder.", code="outside-file")
        parts[split] = Part(images=root, masks=root, pairs=pairs, source=files[stem])
    return parts


def _inside(root: Path, name: str) -> Path:
    """A path of a list: below the folder also where it begins with a slash."""
    return Path(os.path.normpath(name if Path(name).is_relative_to(root) else root / name.lstrip("/")))


SIGNS: tuple[Callable[[Path], Iterator[Layout]], ...] = (
    _two_folders,
    _split_folders,
    _sibling_folders,
    _one_folder,
    _named_as_folders,
)


def plain(name: str) -> str:
    """A name as names are compared."""
    return unicodedata.normalize("NFC", name).lower()


def _pick(place: Path, words: Collection[str], own: str) -> list[str]:
    """The folders of a kind, by their names: those that hold a picture, else the one with our own name."""
    named = [name for name in folders_of(place) if plain(name) in words]
    if named == [own]:
        return named
    return [name for name in named if _holds_picture(place / name)] or [name for name in named if name == own]


def _holds_picture(place: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in find_files(place)[0])


def folders_of(place: Path) -> list[str]:
    return [name for name in names_of(place) if (place / name).is_dir()]


def names_of(place: Path) -> list[str]:
    try:
        return sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(place, f"cannot be read: {error.strerror}", READABLE) from None
