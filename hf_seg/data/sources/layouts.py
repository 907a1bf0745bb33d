"""Recognise the layout of a folder: where its photographs and masks are, by the names of its folders and files.

Each function in `SIGNS` yields the layouts of its kind that a folder matches, including incomplete ones.
`find_layout` chooses one of them.
"""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

from hf_seg.data.file_search import ANNOTATIONS, IMAGE_SUFFIXES, READABLE, find_annotations, find_files
from hf_seg.data.pairs import ALL
from hf_seg.data.sources.split import SPLIT_WORDS, SPLITS, find_splits, lists_all, split_word
from hf_seg.problem import DataError, did_you_mean
from hf_seg.text import printable

MASK_SUFFIXES = {".png", ".bmp", ".tif", ".tiff", ".gif"}
PARTS = ("images", "masks")
IMAGE_WORDS = {"images", "image", "imgs", "img", "img_dir", "jpegimages"}
MASK_WORDS = {
    *("masks", "mask", "labels", "label", "annotations", "annots", "annot", "gt", "ann_dir"),
    *("segmentationclass", "segmentationclasspng"),
}
TOOLS = {("img_dir", "ann_dir"): "MMSegmentation", ("jpegimages", "segmentationclass"): "Pascal VOC"}
LAYOUTS = (
    "A folder of pictures holds images/ and masks/, which may contain train/, val/ and test/; or it holds train/, "
    "val/ and test/, which each contain images/ and masks/. If val/ or test/ is missing, a part of train is drawn for "
    "it. Other layouts: docs/data.md. Or name the files: `hf-seg init DIR --images 'rgb/*.jpg' --masks 'truth/*.png'`."
)
PATTERNS = (
    "A pattern is a path below the folder, with a * for each part that an image and its mask share (** if it includes "
    "folders), and SPLIT for train, val and test: --images 'rgb/SPLIT/*.jpg' --masks 'truth/SPLIT/*_gt.png'."
)
PREVIEW, NO_PREVIEW = "preview.png", r"(?!preview\.png$)"  # `init` writes it beside the pictures
_SPLIT_AND_REST = re.compile(rf"({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})[-_. ]*(\w*)")
_KIND = re.compile(r"[-_. ](masks?|labels?|gt|seg|label(train)?ids)$|\.(jpe?g|png)$", re.IGNORECASE)
_SUFFIX = rf"(?:{'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))})"
_STAR, _STARS = r"(\*\*/\*|\*\*|\*)", {"*": "([^/]+)", "**": "(.+)", "**/*": "(.+)"}
_PAIR = re.compile(rf"(.+?{_SUFFIX})(?:\t|[ ,]+(?!.*\t))(.+{_SUFFIX})", re.IGNORECASE)


def _named(ending: str = "") -> re.Pattern[str]:
    """Build a pattern for paths with `ending` before the suffix; its group is the part that image and mask share."""
    return re.compile(rf"(?s)(.*){re.escape(unicodedata.normalize('NFC', ending))}\.[^./]+")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Where the pairs of one split are: in two folders, which may be the same, with files matched by name."""

    images: Path
    masks: Path  # may be missing for validation and test
    # match file paths below these folders, in Unicode form NFC; other files do not belong to the layout
    image_path: re.Pattern[str] = _named()  # their groups, joined by /, are the name
    mask_path: re.Pattern[str] = _named()
    deep: bool = True  # include subfolders
    source: Path | None = None  # the split's list file, if any, which contains
    listed: tuple[str, ...] | None = None  # either the names of the pairs,
    pairs: tuple[tuple[Path, Path], ...] | None = None  # or their files; then nothing is matched


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to read a folder."""

    name: str  # what `data.layout` and `--layout` call it
    find_parts: Callable[[], dict[str, Part]]  # each existing split, or only `ALL`; raises if incomplete
    tool: str = ""  # the program or data set that uses this layout
    whole: bool = False  # without splits
    refines: Collection[str] = ()  # names of less specific layouts of the same pairs, which this one replaces

    @cached_property
    def parts(self) -> dict[str, Part]:
        return self.find_parts()

    def __str__(self) -> str:
        return f"{self.name} ({self.tool})" if self.tool else self.name


def is_picture_folder(root: Path) -> bool:
    """Whether a folder or its split folders contain `images` or `masks`, or folders with other names for both."""
    places = [root, *(root / name for name in _folders(root) if plain(name) in SPLIT_WORDS)]
    words = [{plain(name) for name in _folders(place)} for place in places]
    return any(not own.isdisjoint(PARTS) or (own & IMAGE_WORDS and own & MASK_WORDS) for own in words)


def find_layout(root: Path, chosen: str | None = None) -> Layout:
    """Find the layout of a folder.

    Args:
        chosen (`str`, *optional*): the name of a layout that the folder matches; or patterns, `IMAGES + MASKS`.

    Raises:
        DataError: when it matches no layout of docs/data.md, not the chosen one, or several.
    """
    if chosen and "*" in chosen:
        layout = _read_patterns(root, chosen)
        return next((each for each in _find_lists(root, [layout]) if each.name.startswith(chosen)), layout)
    found = {layout.name: layout for sign in SIGNS for layout in sign(root)}
    found |= {layout.name: layout for layout in _find_lists(root, list(found.values()))}
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
        command = f"hf-seg init DIR --layout {shlex.quote(left[0].name)}"
        remedy = f"Choose with `{command}` (data.layout in a recipe), or move the rest."
        raise DataError(root, f"matches {len(left)} layouts: {', '.join(map(str, left))}", remedy)
    remedy = LAYOUTS
    if inside := [(root / name, layout.name) for name in _folders(root) for layout in _two_folders(root / name)]:
        images, masks = (shlex.quote(f"*/{name}/**") for name in inside[0][1].split("+"))
        remedy = f"{inside[0][0]} has the layout {inside[0][1]}: name that folder. If all folders are like it: "
        remedy += f"`hf-seg init {shlex.quote(str(root))} --images {images} --masks {masks}`."
    if strange := [name for name in _names(root) if "\\" in name]:
        remedy += (
            f" There are {len(strange)} names with a backslash, such as {printable(strange[0])}: they come from an "
            "archive that was made on Windows. Unpack it again with `unzip`, which turns them into folders."
        )
    raise DataError(root, _lack([part for part in PARTS if part not in _folders(root)], root), remedy)


def _lack(missing: Iterable[str], root: Path) -> str:
    folders = printable(", ".join(_folders(root)[:10]))
    return f"has no {', no '.join(missing)}; {f'its folders are {folders}' if folders else 'it holds no folder'}"


def _two_folders(root: Path) -> Iterator[Layout]:
    """`images` + `masks`, with split folders in both or in neither."""
    for images, masks in product(_pick(root, IMAGE_WORDS, PARTS[0]), _pick(root, MASK_WORDS, PARTS[1])):
        name, tool = f"{images}+{masks}", TOOLS.get((plain(images), plain(masks)), "")
        parts = {ALL: Part(images=root / images, masks=root / masks)}
        yield Layout(name=name, tool=tool, whole=True, find_parts=partial(dict, parts))
        inner = {split_word(folder) for folder in _folders(root / images)}
        if any(SPLIT_WORDS.get(folder, "train") != "train" for folder in inner) and not lists_all(root):
            tool = "ADE20K" if masks == "annotations" and {"training", "validation"} <= inner else tool
            find_parts = partial(_find_inner, root / images, root / masks)
            yield Layout(name=f"{images}/SPLIT+{masks}/SPLIT", tool=tool, refines=[name], find_parts=find_parts)


def _find_inner(images: Path, masks: Path, **paths: Any) -> dict[str, Part]:
    """The splits' folders inside the image and the mask folder, in which there must be no other folder or picture."""
    found = []
    for place in (images, masks):
        folders = {split_word(name): name for name in _folders(place)}
        own = [folders[word] for word in find_splits(str(place), folders).values()]
        pictures = [name for name in _names(place) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if others := sorted({*_folders(place), *pictures} - {*own}):
            what = f"holds {', '.join(own)} and also {', '.join(others[:3])}"
            remedy = "Move it into one of them, or list the pairs of each split in split.json."
            raise DataError(place, f"{what}: which split is that?", remedy)
        found.append({word: place / name for word, name in folders.items()})
    return _in_splits(images.parent, *found, **paths)


def _in_splits(root: Path, images: Mapping[str, Path], masks: Mapping[str, Path], **paths: Any) -> dict[str, Part]:
    """The parts of the splits, from folder name → folder; the masks of validation and test may be missing."""
    own, of_masks = find_splits(str(root), images), find_splits(str(root), masks)
    if alone := [masks[of_masks[split]] for split in SPLITS if split in of_masks.keys() - own.keys()]:
        raise DataError(alone[0], "holds masks, but there is no folder for their images", LAYOUTS)
    parts = {
        split: Part(images=images[name], masks=masks.get(of_masks.get(split, ""), images[name] / PARTS[1]), **paths)
        for split, name in own.items()
    }
    wanted = [*(part.images for part in parts.values()), parts["train"].masks]
    if missing := sorted(place.relative_to(root).as_posix() for place in wanted if not place.is_dir()):
        raise DataError(root, _lack(missing, root), LAYOUTS)
    return parts


def _split_folders(root: Path) -> Iterator[Layout]:
    """`train`, `val` and `test` with `images` and `masks` each."""
    names = _folders(root)
    named = [name for name in names if plain(name) in SPLIT_WORDS]
    words = [
        sorted({plain(folder) for name in named for folder in _pick(root / name, known, part)})
        for known, part in ((IMAGE_WORDS, PARTS[0]), (MASK_WORDS, PARTS[1]))
    ]
    # such as a folder `test` beside `images` and `masks`, whose purpose is not known
    both = all(any(plain(name) in known for name in names) for known in (IMAGE_WORDS, MASK_WORDS))
    if any(words) or (both and named):
        for images, masks in product(words[0] or PARTS[:1], words[1] or PARTS[1:]):
            places = ({name: _below(root / name, word) for name in named} for word in (images, masks))
            yield Layout(name=f"SPLIT/{images}+SPLIT/{masks}", find_parts=partial(_in_splits, root, *places))


def _below(place: Path, word: str) -> Path:
    return place / next((name for name in _folders(place) if plain(name) == word), word)


def _sibling_folders(root: Path) -> Iterator[Layout]:
    """`train` + `trainannot`, `val` + `valannot`, …"""
    # for images and for masks: what follows the split's name → split's name → folder
    words: tuple[dict[str, dict[str, Path]], ...] = ({}, {})
    for name in _folders(root):
        found = _SPLIT_AND_REST.fullmatch(plain(name))
        for known, kind in zip(({"", *IMAGE_WORDS}, MASK_WORDS), words, strict=True):
            if found and found[2] in known:
                kind.setdefault(found[2], {})[found[1]] = root / name
    for (image_word, images), (mask_word, masks) in product(words[0].items(), words[1].items()):
        tool = "CamVid" if (image_word, mask_word) == ("", "annot") else ""
        parts = partial(_in_splits, root, images, masks)
        yield Layout(name=f"SPLIT{image_word}+SPLIT{mask_word}", tool=tool, find_parts=parts)


def _one_folder(root: Path) -> Iterator[Layout]:
    """`x.jpg` beside `x_mask.png`, in one folder or in split folders, by the ending that pairs the most files."""
    named = {name: root / name for name in _folders(root) if plain(name) in SPLIT_WORDS}
    for prefix, places in (("", [root]), ("SPLIT/", list(named.values()))):
        endings: Counter[str] = Counter()
        for place in places:
            stems = {Path(name).stem for name in _names(place) if Path(name).suffix.lower() in IMAGE_SUFFIXES}
            endings.update(filter(None, (ending_beside(name, stems) for name in stems)))
        tool = "Roboflow" if any((place / "_classes.csv").is_file() for place in places) else ""
        for ending in sorted(ending for ending, count in endings.items() if count == max(endings.values())):
            parts = partial(dict, {ALL: Part(images=root, masks=root, mask_path=_named(ending), deep=False)})
            if prefix:
                parts = partial(_in_splits, root, named, named, mask_path=_named(ending))
            name = f"{prefix}NAME+{prefix}NAME{ending}"
            yield Layout(name=name, tool=tool, whole=not prefix, find_parts=parts)


def ending_beside(name: str, names: Collection[str]) -> str:
    """The ending that makes `name` the mask of another one of `names`; empty if it is not a mask."""
    found = _KIND.search(name)
    return found[0] if found and name[: found.start()] in names else ""


def _named_as_folders(root: Path) -> Iterator[Layout]:
    """`leftImg8bit/…/x_leftImg8bit.png` + `gtFine/…/x_gtFine_labelIds.png`: files end with folder names."""
    folders = _folders(root)
    for images, masks in product([name for name in folders if _is_named(root / name)], folders):
        if images == masks:
            continue
        of_folder = re.compile(rf".*(_{re.escape(masks)}(_\w+)?)")
        found = {match.groups() for path in find_files(root / masks)[0] if (match := of_folder.fullmatch(path.stem))}
        ids = [kind for kind, rest in found if not rest or re.fullmatch(r"_label\w*ids", rest.lower())]
        for kind in sorted(ids or (kind for kind, _ in found)):
            paths = {"image_path": _named(f"_{images}"), "mask_path": _named(kind)}
            parts = partial(dict, {ALL: Part(images=root / images, masks=root / masks, **paths)})
            if any(plain(folder) in SPLIT_WORDS for folder in _folders(root / images)):
                parts = partial(_find_inner, root / images, root / masks, **paths)
            tool = "like Cityscapes" if (images, masks) == ("leftImg8bit", "gtFine") else ""
            yield Layout(name=f"{images}+{kind[1:]}", tool=tool, find_parts=parts)


def _is_named(place: Path) -> bool:
    """Whether the first picture found in a folder ends with `_` and the folder's name."""
    pictures = (path.stem for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return next(pictures, "").endswith(f"_{place.name}")


def _annotations(root: Path) -> Iterator[Layout]:
    """Polygons and other shapes in JSON, from which `init` draws masks."""
    for kind in ANNOTATIONS:
        if next(find_annotations(root, kind, limit=20), None):
            yield Layout(name=kind, find_parts=partial(_refuse_undrawn, root, kind))


def _refuse_undrawn(root: Path, kind: str) -> dict[str, Part]:
    what = f"holds {kind} annotations, but no masks have been drawn from them yet"
    raise DataError(root, what, f"`hf-seg init {shlex.quote(str(root))}` draws them into masks/.")


def _find_lists(root: Path, found: list[Layout]) -> Iterator[Layout]:
    """`train.txt`, `val.txt` and `test.txt`, with names for a layout without splits, or with lines `image mask`, as
    `init` writes them for masks that it draws."""
    whole = [layout for layout in found if layout.whole]
    for name, below in (("lists", ""), ("ImageSets", "ImageSets/Segmentation"), ("drawn", "masks")):
        place = root / below
        names = _names(place) if place.is_dir() else []
        files = {Path(name).stem: place / name for name in names if Path(name).suffix.lower() == ".txt"}
        if any(SPLIT_WORDS.get(plain(stem)) == "train" for stem in files):
            lists = {split: files[stem] for split, stem in find_splits(str(place), files).items()}
        elif "default" in files and place != root:  # CVAT's list of pictures that have masks
            lists = {ALL: files["default"]}
        else:
            continue
        lines = {file: _read_list(file) for file in lists.values()}
        if any(_PAIR.fullmatch(line) for listed in lines.values() for line in listed):
            matches = map(_PAIR.fullmatch, sum(lines.values(), []))
            if name == "drawn" or any(match and _listed_path(root, match[1]).is_file() for match in matches):
                refined, pairs = found if name == "drawn" else whole, partial(_find_listed_pairs, root, lists, lines)
                yield Layout(name=name, find_parts=pairs, refines=[layout.name for layout in refined])
        elif name != "drawn" and (ALL in lists or not lists_all(root)):
            for layout in whole:
                (part,) = layout.parts.values()
                parts = {split: replace(part, source=file, listed=tuple(lines[file])) for split, file in lists.items()}
                of = {"tool": layout.tool if place == root else "Pascal VOC", "refines": [layout.name]}
                yield Layout(name=f"{layout.name}+{name}", find_parts=partial(dict, parts), **of)


def _read_list(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(file, f"cannot be read: {error}", READABLE) from None
    return [line.strip().strip('"') for line in lines if line.strip()]


def _find_listed_pairs(root: Path, lists: dict[str, Path], lines: dict[Path, list[str]]) -> dict[str, Part]:
    parts = {}
    for split, file in lists.items():
        matches = [(line, _PAIR.fullmatch(line)) for line in lines[file]]
        if wrong := next((line for line, match in matches if not match), None):
            raise DataError(file, f"{wrong} does not have the form `image mask` of other lines", "Correct the list.")
        pairs = tuple((_listed_path(root, match[1]), _listed_path(root, match[2])) for _, match in matches)
        inside = f"{os.path.abspath(root)}{os.sep}"
        outside = (path for pair in pairs for path in pair if not os.path.abspath(path).startswith(inside))
        if file.parent != root / "masks" and (path := next(outside, None)):
            remedy = "List only files in the folder."
            raise DataError(file, f"names {path}, which is outside the folder", remedy, code="outside-file")
        parts[split] = Part(images=root, masks=root, pairs=pairs, source=file)
    return parts


def _listed_path(root: Path, name: str) -> Path:
    """Return the file that a list names, in any Unicode form; a path relative to the folder may begin with a slash."""
    name_below = os.path.normpath(name.lstrip("/"))
    forms = [root / name_below, *(root / unicodedata.normalize(form, name_below) for form in ("NFC", "NFD"))]
    below = next((path for path in forms if path.is_file()), forms[0])
    return Path(name) if os.path.isabs(name) and (os.path.isfile(name) or not below.parent.is_dir()) else below


def _read_patterns(root: Path, chosen: str) -> Layout:
    """Build the layout of two patterns, such as `rgb/SPLIT/*.jpg + truth/SPLIT/*_gt.png`."""
    patterns = [os.path.normpath(unicodedata.normalize("NFC", pattern)) for pattern in chosen.split(" + ")]
    inside = not any(pattern.startswith(("/", "..")) or "***" in pattern for pattern in patterns)
    counts = [(len(re.findall(_STAR, pattern)), pattern.count("SPLIT")) for pattern in patterns]
    if not inside or len(counts) != 2 or counts[0] != counts[1] or not counts[0][0] or counts[0][1] > 1:
        raise DataError(root, f'"{chosen}" is not one pattern for images and one for masks', PATTERNS)
    return Layout(name=chosen, whole="SPLIT" not in chosen, find_parts=partial(_find_by_patterns, root, *patterns))


def _find_by_patterns(root: Path, *patterns: str) -> dict[str, Part]:
    places, paths, words, deep = [], [], [], False
    for pattern in patterns:
        base = re.split(r"\*|SPLIT", pattern)[0].rpartition("/")[0]
        rest = pattern.removeprefix(f"{base}/")
        deep = deep or "/" in rest or "**" in rest
        path = "".join(_STARS.get(piece, re.escape(piece)) for piece in re.split(_STAR, rest))
        path += "" if Path(pattern).suffix.lower() in IMAGE_SUFFIXES else r"\.[^./]+"
        path = f"(?si){'' if base else NO_PREVIEW}{path}"
        names = (plain(file.relative_to(root / base).as_posix()) for file in find_files(root / base)[0])
        any_split = re.compile(path.replace("SPLIT", f"(?P<split>{'|'.join(SPLIT_WORDS)})"))
        found = list(filter(None, map(any_split.fullmatch, names)))
        if not found:
            raise DataError(root, f"has no file that matches {pattern}", PATTERNS)
        words.append({match["split"] for match in found} if "SPLIT" in pattern else {""})
        places, paths = [*places, root / base], [*paths, path]
    if alone := sorted(words[1] - words[0]):
        raise DataError(root, f"has {patterns[1]} for {alone[0]}, but no {patterns[0]}", PATTERNS)
    splits = find_splits(str(root), words[0]) if words[0] != {""} else {ALL: ""}
    found = {split: [re.compile(path.replace("SPLIT", word)) for path in paths] for split, word in splits.items()}
    return {
        split: Part(images=places[0], masks=places[1], image_path=image, mask_path=mask, deep=deep)
        for split, (image, mask) in found.items()
    }


SIGNS = (_two_folders, _split_folders, _sibling_folders, _one_folder, _named_as_folders, _annotations)


def plain(name: str) -> str:
    """Return a name in the form used for comparisons: NFC, lower case."""
    return unicodedata.normalize("NFC", name).lower()


def _pick(place: Path, words: Collection[str], own: str) -> list[str]:
    """Return the folders whose names are in `words`: those that contain pictures, else the one named `own`."""
    named = [name for name in _folders(place) if plain(name) in words]
    if named == [own]:
        return named
    held = {name: {path.suffix.lower() for path in find_files(place / name)[0]} for name in named}
    return [name for name in named if held[name] & IMAGE_SUFFIXES] or [name for name in named if name == own]


def _folders(place: Path) -> list[str]:
    return [name for name in _names(place) if (place / name).is_dir()]


def _names(place: Path) -> list[str]:
    try:
        return sorted(path.name for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(place, f"cannot be read: {error.strerror}", READABLE) from None
