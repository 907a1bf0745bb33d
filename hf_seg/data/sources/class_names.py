"""Read class names from the small files that annotation programs write beside the masks."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_seg.data.columns import as_text
from hf_seg.files import parse_json
from hf_seg.problem import DataError
from hf_seg.text import printable

VOID = {255, 65_535}
Names = dict[int, str]  # id, or colour as 0xRRGGBB → class name


def find_names(folders: Iterable[Path], values: Collection[int], by_color: bool) -> tuple[Names, str]:
    """Read the first file that has a name for every value in the masks.

    Args:
        values (`Collection[int]`): the values in the masks, ids or colours; the ids 255 and 65535 need no name.

    Returns:
        `tuple[dict[int, str], str]`: id or colour → name, and the file's name; or empty, and why no file is used.
    """
    lines = []
    for file in dict.fromkeys(folder / name for folder in folders for name in READERS):
        if not file.is_file():
            continue
        try:
            ids, colors = read_names(file)
        except DataError:  # another program's file of that name
            lines.append(f"not from {file.name}, which does not hold {READERS[file.name][1]}")
            continue
        names = colors if by_color else ids
        nameless = find_nameless(values, names, by_color)
        if names and not nameless:
            return names, file.name
        lines.append(f"not from {file.name}, which has no name for {nameless}")
    return {}, "; ".join(dict.fromkeys(lines))


def find_nameless(values: Collection[int], names: Names, by_color: bool) -> str:
    """Describe the ids or colours of masks that names are missing for; empty if none is. Of three ids or more, one may
    be void, which needs no name."""
    nameless = set(values) - names.keys() - (VOID if len(values) > 2 and not by_color else set())
    return ", ".join(as_text(value, by_color) for value in sorted(nameless)[:5])


def read_names(file: Path) -> tuple[Names, Names]:
    """Read a file with one of the known names: id → class name, and colour → class name."""
    reader, form = READERS[file.name]
    try:
        ids, colors = reader(file.read_text(encoding="utf-8-sig"))
        if strange := [name for name in (*ids.values(), *colors.values()) if not isinstance(name, str)]:
            raise TypeError(f"the name {strange[0]!r} is not text")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise DataError(file, f"cannot be read ({error})", f"it must hold {form}") from None
    return tuple({value: printable(name).strip() for value, name in names.items()} for names in (ids, colors))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _read_labelmap(text: str) -> tuple[Names, Names]:
    rows = [line.split(":") for line in _lines(text)]
    return {}, {_color([int(part) for part in row[1].split(",")]): row[0] for row in rows}


def _read_csv(text: str) -> tuple[Names, Names]:
    rows = list(csv.reader(_lines(text)))
    return {int(row[0]): row[1] for row in rows if row[0].strip().isdecimal()}, {}


def _read_list(text: str) -> tuple[Names, Names]:
    return dict(enumerate(name for name in _lines(text) if name != "__ignore__")), {}


def _read_id2label(text: str) -> tuple[Names, Names]:
    return {int(number): name for number, name in parse_json(text).items()}, {}


def _read_label_classes(text: str) -> tuple[Names, Names]:
    content = parse_json(text)
    ids: Names = {}
    colors: Names = {}
    if isinstance(content, Mapping) and all(str(key).isdecimal() for key in content):
        return {int(key): name for key, name in content.items()}, {}
    for entry in content if isinstance(content, list) else next(iter(content.values())):
        name = _first(entry, "name", "class_name", "label")
        value, color = (_first(entry, *keys) for keys in (("id", "class_id", "index", "value"), ("color", "colour")))
        if isinstance(value, int):
            ids[value] = name
        if color is not None:
            colors[_color(color)] = name
    return ids, colors


def _first(entry: Mapping[str, Any], *keys: str) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def _color(color: Any) -> int:
    if isinstance(color, str):
        return int(re.fullmatch("#([0-9a-fA-F]{6})(?:[0-9a-fA-F]{2})?", color)[1], 16)
    red, green, blue, *_ = color
    return red << 16 | green << 8 | blue


# file name → function that reads it, and description of its format
READERS: dict[str, tuple[Callable[[str], tuple[Names, Names]], str]] = {
    "id2label.json": (_read_id2label, 'an object like {"0": "name"}'),
    "labelmap.txt": (_read_labelmap, "lines like name:255,0,0::"),
    "_classes.csv": (_read_csv, "lines like 0, name"),
    "class_names.txt": (_read_list, "one name per line, in the order of the ids from 0"),
    "label_classes.json": (_read_label_classes, 'a list like [{"name": "name", "id": 0, "color": "#ff0000"}]'),
}
