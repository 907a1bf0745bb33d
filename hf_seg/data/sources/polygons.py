"""Draw the polygons and other shapes in the JSON of annotation programs (COCO and labelme) into `masks/`, once.

Sources: https://cocodataset.org/#format-data and https://github.com/wkentaro/labelme.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
from datasets.utils import tqdm

from hf_seg.data.classes import FILE_NAME, MAX_CLASSES, read_classes, writable_name
from hf_seg.data.file_search import ANNOTATIONS, IMAGE_SUFFIXES, find_annotations, find_files
from hf_seg.data.sources.layouts import plain
from hf_seg.data.sources.split import SPLIT_WORDS, find_splits
from hf_seg.data.spec import IGNORE_INDEX
from hf_seg.problem import DataError

BACKGROUND = "background"
VOID = "__ignore__"  # labelme's label for void
AGAIN = "To draw them again, move masks/ and classes.json away and repeat `hf-seg init` with --overwrite."

Shapes = list[tuple[str, Any]]  # class name and shape; later ones cover earlier ones
Size = tuple[int, int]  # width, height
Cover = Callable[[Any, Size], np.ndarray | None]  # see `_cover_coco`


class Drawing(NamedTuple):
    """A picture and what is to be drawn in its mask."""

    file: Path  # the JSON
    image: Path  # may not exist
    mask: Path  # below `masks`
    size: Size
    shapes: Shapes


def draw(root: Path, out: Path, kind: str) -> list[str]:
    """Draw the annotations in `root` into `out/masks`, with lists of the pairs, and write `out/classes.json`.

    Masks are PNG files with 8-bit class ids: 0 is what no shape covers, 255 is void.

    Args:
        kind (`str`): `"coco"` or `"labelme"`.

    Returns:
        `list[str]`: lines to show to the user.

    Raises:
        DataError: when annotations or pictures are not as expected, or pycocotools is missing; then nothing is kept.
    """
    if kind == "coco" and find_spec("pycocotools") is None:
        remedy = "Run `pip install 'hf_seg[annotations]'`."
        raise DataError("pycocotools", "is not installed, but is needed to draw COCO's polygons", remedy)
    pictures = [path for path in find_files(root)[0] if path.suffix.lower() in IMAGE_SUFFIXES]
    drawings, names = _read(root, kind, pictures)
    names = [BACKGROUND, *(name for name in dict.fromkeys(names) if name not in (BACKGROUND, VOID))]
    if len(names) > MAX_CLASSES:
        raise DataError(root, f"names {len(names)} classes, but at most {MAX_CLASSES} are allowed", "Merge some.")
    images = [each.image for each in drawings]
    if images and not any(image.is_file() for image in images):
        what = f"has none of the {len(images):,} pictures that its {kind} annotations name, such as {images[0]}"
        raise DataError(root, what, "Put them there, under these names.")
    first: dict[Path, Drawing] = {}
    if again := next((each for each in drawings if first.setdefault(each.mask, each) is not each), None):
        what = f"names {again.image.relative_to(root)}, for which a mask is already drawn from another file"
        raise DataError(again.file, what, "Move one of the two away.", code="split")
    splits = _find_splits(root, kind, {each.file for each in drawings})

    def listed(path: Path) -> str:
        return path.relative_to(root).as_posix() if out == root else str(path)

    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".masks-", dir=out) as folder:
        masks, cover = Path(folder) / "masks", _cover_coco if kind == "coco" else _cover_labelme
        bar = tqdm(drawings, desc="Drawing masks", unit=" pictures", disable=None)
        drawn = [_draw_mask(each, masks, names, cover) for each in bar]
        if not any(drawn):
            what = f"the {kind} annotations have no shape with an area"
            raise DataError(root, what, "Boxes and points are not masks.")
        lines = {f"{kind}.sha256": [f"{_hash(file)}  {listed(file)}" for file in splits]}
        for each in drawings:
            line = f"{listed(each.image)}\tmasks/{each.mask.as_posix()}"
            lines.setdefault(f"{splits[each.file]}.txt", []).append(line)
        for name, own in lines.items():
            (masks / name).write_text("\n".join([*own, ""]), encoding="utf-8")
        classes = [{"name": writable_name(name), "id": index} for index, name in enumerate(names)]
        content = {"classes": classes, "ignore": [IGNORE_INDEX]}
        read_classes(content)  # raises before an invalid file is written
        (Path(folder) / FILE_NAME).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        for name in (FILE_NAME, "masks"):
            os.rename(Path(folder) / name, out / name)
    shapes, folders = sum(len(each.shapes) for each in drawings), {image.parent for image in images}
    left = sum(path.parent in folders for path in set(pictures) - set(images))
    notes = {
        "annotations have no area (boxes, points, lines) and are not drawn": shapes - sum(drawn),
        "pictures have no shape with an area, so they are all background (to leave one out, delete its line in "
        "masks/*.txt)": drawn.count(0),
        "other pictures in these folders have no annotation and are left out": left,
    }
    said = [f"  drawn   {sum(drawn):,} shapes in {len(drawings):,} pictures of {kind}"]
    return said + [f"  note    {count:,} {what}" for what, count in notes.items() if count]


def _draw_mask(drawing: Drawing, masks: Path, names: list[str], cover: Cover) -> int:
    """Draw a mask into the folder `masks`, and return the number of shapes with an area."""
    mask, count = np.zeros(drawing.size[::-1], np.uint8), 0
    for name, shape in drawing.shapes:
        try:
            if (covered := cover(shape, drawing.size)) is not None:
                mask[covered] = IGNORE_INDEX if name == VOID else names.index(name)
                count += 1
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise DataError(drawing.file, f"has a shape that cannot be drawn: {error!r}", "Correct it.") from None
    path = masks / drawing.mask
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(mask).save(path)
    return count


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def find_changes(root: Path) -> list[Path]:
    """Find the annotations that have changed, are new or are gone since `init` drew masks from them into `root/masks`.
    If all are gone, none is returned."""
    changes: list[Path] = []
    for kind in ANNOTATIONS:
        record = root / "masks" / f"{kind}.sha256"
        lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
        hashes = {root / name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        if there := {file for file in hashes if file.is_file()}:
            place, since = Path(os.path.commonpath([file.parent for file in there])), record.stat().st_ctime_ns
            newer = find_annotations(place, kind, since=since)
            changes += [file for file in newer if hashes.get(file) != _hash(file)] + sorted(hashes.keys() - there)
    return changes


def _find_splits(root: Path, kind: str, files: Collection[Path]) -> dict[Path, str]:
    """The split of each JSON, by the words in its path; `default`, as in CVAT's lists, if no path has such a word."""
    # the name of a COCO file may contain its split; a labelme file has the name of its picture
    words = {file: _split_word(file if kind == "coco" else file.parent, root) for file in sorted(files)}
    if not any(words.values()):
        return dict.fromkeys(words, "default")
    if nameless := [file for file, word in words.items() if not word]:
        what = "which split is that? The paths of other files name one"
        raise DataError(nameless[0], what, "Rename it or its folder in the same way.")
    found = find_splits(f"{root}, by the names of its annotations and their folders", dict.fromkeys(words.values()))
    by_word = {word: split for split, word in found.items()}
    return {file: by_word[word] for file, word in words.items()}


def _split_word(place: Path, root: Path) -> str:
    """Return the first word for a split in a path below `root`; empty if there is none."""
    words = re.findall("[a-z]+", plain(place.relative_to(root).as_posix()))
    return next((word for word in words if word in SPLIT_WORDS), "")


def _read(root: Path, kind: str, pictures: list[Path]) -> tuple[list[Drawing], list[str]]:
    """Read all files of a kind; also return the names of the classes."""
    drawings, names = [], []
    places: dict[str, list[Path]] = {}
    for path in pictures:
        places.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
    homes = {path.parent for path in pictures}
    for file in find_annotations(root, kind):
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            classes, found = (_read_coco if kind == "coco" else _read_labelme)(content)
            paths = [PureWindowsPath(unicodedata.normalize("NFC", name)) for name, *_ in found]
        except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise DataError(file, f"is not a valid {kind} file: {error!r}", "Export it again.") from None
        names += classes
        # a picture that is missing is expected beside the others of the file
        home = next((places[path.name][0].parent for path in paths if path.name in places), file.parent)
        for (_, size, shapes), path in zip(found, paths, strict=True):
            same = places.get(path.name, [])
            if file.parent in homes:
                same = [image for image in same if file.parent in image.parents]
            # several with one name: choose by folders in `path`, or by a folder in the JSON's name, such as train2017
            same = [image for image in same if image.as_posix().endswith(f"/{path.as_posix()}")] or same
            told = [image for image in same if any(part in file.stem for part in image.relative_to(root).parts[:-1])]
            image, *others = (told if len(same) > 1 else same) or same or [home / path.name]
            if others:
                what = f"names {path.as_posix()}: is that {image} or {others[0]}?"
                raise DataError(file, what, "Move the other one away.")
            mask = image.relative_to(root).with_suffix(".png")
            drawings.append(Drawing(file, image, mask, size, shapes))
    return drawings, names if kind == "coco" else sorted(names)


def _read_coco(content: Any) -> tuple[list[str], list[tuple[str, Size, Shapes]]]:
    categories = {entry["id"]: entry["name"].strip() for entry in content["categories"]}
    shapes: dict[Any, Shapes] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:  # `iscrowd` is ignored: CVAT's exporter sets it for painted masks
        if entry["image_id"] not in shapes:
            raise ValueError(f"an annotation refers to image {entry['image_id']}, which is not among the images")
        shapes[entry["image_id"]].append((categories[entry["category_id"]], entry.get("segmentation")))
    # Roboflow's first category is the project: it is the supercategory of the others and has no shapes
    used = {categories[entry["category_id"]] for entry in content["annotations"]}
    groups = {entry.get("supercategory") for entry in content["categories"]} - used
    images = [
        (each["file_name"], _size(each["width"], each["height"]), shapes[each["id"]]) for each in content["images"]
    ]
    return [name for _, name in sorted(categories.items()) if name not in groups], images


def _read_labelme(content: Any) -> tuple[list[str], list[tuple[str, Size, Shapes]]]:
    shapes = [({"_background_": BACKGROUND}.get(shape["label"], shape["label"]), shape) for shape in content["shapes"]]
    if strange := [name for name, _ in shapes if not isinstance(name, str)]:
        raise TypeError(f"the label {strange[0]!r} is not text")
    size = _size(content["imageWidth"], content["imageHeight"])
    return [name for name, _ in shapes], [(content["imagePath"], size, shapes)]


def _size(width: Any, height: Any) -> Size:
    if not all(isinstance(side, int | float) and float(side).is_integer() and side > 0 for side in (width, height)):
        raise ValueError(f"a picture has {width!r} × {height!r} pixels")
    return int(width), int(height)


def _cover_coco(shape: Any, size: Size) -> np.ndarray | None:
    """Return the pixels, bool `(height, width)`, that COCO's polygons or RLE cover; None for an empty shape."""
    from pycocotools import mask

    if isinstance(shape, list):
        polygons = [polygon for polygon in shape if len(polygon) >= 6]
        shape = mask.merge(mask.frPyObjects(polygons, *size[::-1])) if polygons else None
    elif shape and isinstance(shape["counts"], list):
        shape = mask.frPyObjects(shape, *size[::-1])
    return mask.decode(shape).astype(bool) if shape else None


def _cover_labelme(shape: Any, size: Size) -> np.ndarray | None:
    """As `_cover_coco`, for a polygon, rectangle, circle or mask, outline included; None for points and lines."""
    canvas = PIL.Image.new("1", size)
    pencil, points = PIL.ImageDraw.Draw(canvas), [tuple(point) for point in shape["points"]]
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon" and len(points) > 2:
        pencil.polygon(points, fill=1, outline=1)
    elif kind == "rectangle":
        pencil.rectangle([*map(min, *points), *map(max, *points)], fill=1)
    elif kind == "circle":
        (x, y), radius = points[0], math.dist(*points)
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
    elif kind == "mask":
        with PIL.Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as part:
            canvas.paste(part.convert("1"), tuple(map(round, points[0])))
    else:
        return None
    return np.asarray(canvas)
