"""Draw the polygons and other shapes in the JSON of annotation programs (COCO and labelme) into `masks/`, once.

Sources: https://cocodataset.org/#format-data and https://github.com/wkentaro/labelme.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import tempfile
import unicodedata
from collections import Counter
from importlib.util import find_spec
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
from datasets.utils import tqdm

from hf_seg.data.classes import FILE_NAME, MAX_CLASSES, read_classes, writable_name
from hf_seg.data.file_search import IMAGE_SUFFIXES, find_files
from hf_seg.data.pairs import ALL
from hf_seg.data.sources.layouts import find_annotations, plain
from hf_seg.data.sources.split import SPLIT_WORDS, find_splits
from hf_seg.data.spec import IGNORE_INDEX
from hf_seg.problem import DataError

BACKGROUND = "background"
VOID = "__ignore__"  # labelme's label for void

Shapes = list[tuple[str, Any]]  # class name and shape; later ones cover earlier ones
Size = tuple[int, int]  # width, height


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
    if drawings and not any(image.is_file() for _, image, *_ in drawings):
        what = f"has none of the {len(drawings):,} pictures that its {kind} annotations name, such as {drawings[0][1]}"
        raise DataError(root, what, "Put them there, under these names.")
    # the name of a COCO file may contain its split; a labelme file has the name of its picture
    words = {file: _split_word(file if kind == "coco" else file.parent, root) for file, *_ in drawings}
    found = {word: word for word in words.values() if word}
    place = f"{root}, by the names of its annotations and their folders"
    splits = {word: split for split, word in find_splits(place, found).items()} if found else {"": ALL}
    pairs: dict[str, list[str]] = {}
    drawn: Counter[bool] = Counter()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".masks-", dir=out) as folder:
        masks = Path(folder) / "masks"
        for file, image, size, shapes in tqdm(drawings, desc="Drawing masks", unit=" pictures", disable=None):
            if words[file] not in splits:
                raise DataError(
                    file,
                    "which split is that? The paths of other files name one",
                    "Rename it or its folder in the same way.",
                )
            below = image.relative_to(root)
            path = masks / below.with_suffix(".png")
            if path.exists():
                what = f"names {below}, for which a mask is already drawn from another file"
                raise DataError(file, what, "Move one of the two away.", code="split")
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = np.zeros(size[::-1], np.uint8)
            for name, shape in shapes:
                try:
                    covered = (_cover_coco if kind == "coco" else _cover_labelme)(shape, size)
                    drawn[covered is not None] += 1
                    if covered is not None:
                        mask[covered] = IGNORE_INDEX if name == VOID else names.index(name)
                except (LookupError, TypeError, ValueError, OSError) as error:
                    raise DataError(file, f"has a shape that cannot be drawn: {error!r}", "Correct it.") from None
            PIL.Image.fromarray(mask).save(path)
            line = f"{below.as_posix() if out == root else image}\t{path.relative_to(folder).as_posix()}\n"
            pairs.setdefault(splits[words[file]], []).append(line)
        if not drawn[True]:
            what = f"the {kind} annotations have no shape with an area"
            raise DataError(root, what, "Boxes and points are not masks.")
        for split, lines in pairs.items():
            (masks / f"{'default' if split == ALL else split}.txt").write_text("".join(lines), encoding="utf-8")
        classes = [{"name": writable_name(name), "id": index} for index, name in enumerate(names)]
        content = {"classes": classes, "ignore": [IGNORE_INDEX]}
        read_classes(content)  # raises before an invalid file is written
        (Path(folder) / FILE_NAME).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        for name in (FILE_NAME, "masks"):
            os.rename(Path(folder) / name, out / name)
    said = [f"  drawn   {drawn[True]:,} shapes in {len(drawings):,} pictures of {kind}"]
    if drawn[False]:
        said.append(f"  note    {drawn[False]:,} annotations have no area (boxes, points, lines) and are not drawn")
    if kind == "coco" and (bare := sum(not shapes for *_, shapes in drawings)):
        said.append(f"  note    {bare:,} pictures have no shape, so they are all background; to leave one out, delete")
        said.append("          its line in masks/*.txt")
    listed = {image for _, image, *_ in drawings}
    folders = {image.parent for image in listed}
    if left := sum(path.parent in folders for path in set(pictures) - listed):
        said.append(f"  note    {left:,} other pictures in these folders have no annotation and are left out")
    return said


def _split_word(place: Path, root: Path) -> str:
    """Return the first word for a split in a path below `root`; empty if there is none."""
    words = re.findall("[a-z]+", plain(place.relative_to(root).as_posix()))
    return next((word for word in words if word in SPLIT_WORDS), "")


def _read(root: Path, kind: str, pictures: list[Path]) -> tuple[list[tuple[Path, Path, Size, Shapes]], list[str]]:
    """Read all files of a kind: file, picture, size and shapes of each drawing, and the names of the classes."""
    drawings, names = [], []
    places: dict[str, list[Path]] = {}
    for path in pictures:
        places.setdefault(unicodedata.normalize("NFC", path.name), []).append(path)
    homes = {path.parent for path in pictures}
    for file in find_annotations(root, kind):
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            classes, found = (_read_coco if kind == "coco" else _read_labelme)(content)
        except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise DataError(file, f"is not a valid {kind} file: {error!r}", "Export it again.") from None
        names += classes
        for name, size, shapes in found:
            name = unicodedata.normalize("NFC", PureWindowsPath(name).as_posix())
            same = places.get(name.rpartition("/")[2], [])
            if file.parent in homes:
                same = [path for path in same if file.parent in path.parents]
            # several with one name: choose by folders in `name`, or by a folder in the JSON's name, such as train2017
            same = [path for path in same if path.as_posix().endswith(f"/{name}")] or same
            told = [path for path in same if any(part in file.stem for part in path.relative_to(root).parts[:-1])]
            image, *others = (told if len(same) > 1 else same) or same or [file.parent / name.rpartition("/")[2]]
            if others:
                raise DataError(file, f"names {name}: is that {image} or {others[0]}?", "Move the other one away.")
            drawings.append((file, image, size, shapes))
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
