"""`classes.json`: the classes in the masks of a user's own data, strictly checked."""

from __future__ import annotations

import colorsys
import itertools
import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_seg.data.columns import MAX_ID, ClassMask, as_text
from hf_seg.data.spec import IGNORE_INDEX
from hf_seg.files import parse_json
from hf_seg.problem import DataError, Problem, did_you_mean
from hf_seg.text import printable

FILE_NAME = "classes.json"
MAX_CLASSES = 255  # class ids have 8 bits, and 255 is the ignored label
KEYS = ("classes", "ignore", "label_map")
CLASS_KEYS = ("name", "id", "color")
ID = f"a whole number from 0 to {MAX_ID}"
CONTROL = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories
COLOUR = 'a colour, "#rrggbb" or [red, green, blue] from 0 to 255'

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a user's own masks."""

    names: tuple[str, ...]  # the position is the class id
    palette: tuple[Color, ...]
    by_color: bool  # masks hold the classes' colours, not ids
    meaning: dict[int, int]  # allowed mask value, an id or a colour as 0xRRGGBB → class id, or 255 (ignored)

    def build_column(self) -> ClassMask:
        """Build the column type that decodes masks to class ids."""
        values, labels = list(self.meaning), list(self.meaning.values())
        return ClassMask(by_color=self.by_color, values=values, labels=labels)


def load_classes(root: Path) -> Classes:
    """Read `root/classes.json`; raise a DataError if it is missing, or with all that is wrong in it."""
    path = root / FILE_NAME
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        what, remedy = (
            "is missing: it says what the values in the masks mean",
            f"`hf-seg init {shlex.quote(str(root))}` writes it from the masks.",
        )
    except OSError as error:
        what, remedy = f"cannot be read: {error.strerror}", "make it a readable file"
    except UnicodeDecodeError:
        what, remedy = "is not text in UTF-8", "save it as UTF-8"
    except ValueError as error:
        what, remedy = str(error), ""
    else:
        return read_classes(content, str(path))
    raise DataError(path, what, remedy, code="classes-json")


def read_classes(content: Any, place: str = FILE_NAME) -> Classes:
    """Read the parsed JSON of `classes.json`; raise a DataError with all that is wrong in it."""
    entries = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        what = 'must be an object {"classes": [...]}: a list of classes, each with a name and an id or a color'
        raise DataError(place, what, code="classes-json")
    keys = {key for entry in entries if isinstance(entry, dict) for key in entry}
    reader = _Reader(place, by_color="color" in keys and "id" not in keys)
    reader.read_unknown("", content, KEYS)
    if not 2 <= len(entries) <= MAX_CLASSES:
        remedy = "the background is a class, too" if len(entries) < 2 else "merge some"
        reader.refuse("classes", f"must have 2 to {MAX_CLASSES} classes, but has {len(entries)}", remedy)
    for index, entry in enumerate(entries):
        reader.read_class(index, entry)
    reader.read_label_map(content.get("label_map", {}))
    reader.read_ignore(content.get("ignore", []))
    if reader.problems:
        raise DataError(problems=reader.problems)
    generated = distinct_colors(taken=[color for color in reader.palette if color])
    palette = tuple(color or next(generated) for color in reader.palette)
    return Classes(names=tuple(reader.names), palette=palette, by_color=reader.by_color, meaning=reader.meaning)


def writable_name(name: str) -> str:
    """Return a class name, escaped if it has characters that control a terminal or cannot be written to a file."""
    return printable(name) if any(unicodedata.category(character) in CONTROL for character in name) else name


class _Reader:
    """Reads `classes.json` part by part and collects what is wrong with it."""

    def __init__(self, place: str, by_color: bool):
        self.place, self.by_color, self.kind = place, by_color, COLOUR if by_color else ID
        self.problems: list[Problem] = []
        self.meaning: dict[int, int] = {}
        self.palette: list[Color | None] = []
        # value that may occur only once → key of its first occurrence
        self.names: dict[str, str] = {}
        self.values: dict[int, str] = {}
        self.colors: dict[int, str] = {}

    def refuse(self, key: str, what: str, remedy: str = "") -> None:
        self.problems.append(Problem(code="classes-json", place=self.place, what=f"{key}: {what}", remedy=remedy))

    def read_unknown(self, prefix: str, entry: dict, known: tuple[str, ...]) -> None:
        for key in (key for key in entry if key not in known):
            self.refuse(f"{prefix}{key}", "unknown key", _known(key, known))

    def read_class(self, index: int, entry: Any) -> None:
        place = f"classes[{index}]"
        if not isinstance(entry, dict):
            self.refuse(place, "must be an object with name, id or color")
            return
        self.read_unknown(f"{place}.", entry, CLASS_KEYS)
        name = entry.get("name")
        if not isinstance(name, str) or not name.strip():
            self.refuse(f"{place}.name", "is missing or not text", "give the class a name")
        elif name != writable_name(name):
            self.refuse(f"{place}.name", f"{_shown(name)} contains a control character", "remove it")
        else:
            self._once(f"{place}.name", name, _shown(name), self.names)
        wanted = "color" if self.by_color else "id"
        if wanted in entry:
            self._mean(f"{place}.{wanted}", entry[wanted], index)
        else:
            self.refuse(f"{place}.{wanted}", "is missing", f"give {self.kind}: either all classes have one, or none")
        color = _color(entry.get("color"))
        self.palette.append(None if color is None else (color >> 16, color >> 8 & 255, color & 255))
        if "color" in entry and not self.by_color:  # `by_color`: it was checked above
            if color is None:
                self._mismatch(f"{place}.color", COLOUR, entry["color"])
            else:
                self._once(f"{place}.color", color, as_text(color, True), self.colors)

    def read_label_map(self, label_map: Any) -> None:
        names = list(self.names)
        if not isinstance(label_map, dict):
            raw = "colour" if self.by_color else "id"
            self.refuse("label_map", f'must be an object {{"{raw}": "name of a class"}}')
            return
        for raw, name in label_map.items():
            key = f"label_map.{raw}"
            if name not in names:
                self.refuse(key, f"there is no class {_shown(name)}", _known(str(name), names))
            else:
                value = int(raw) if not self.by_color and re.fullmatch("[0-9]{1,5}", raw) else raw
                self._mean(key, value, names.index(name))

    def read_ignore(self, ignore: Any) -> None:
        if not isinstance(ignore, list):
            self._mismatch("ignore", f"a list of {'colours' if self.by_color else 'ids'}", ignore)
            return
        for index, value in enumerate(ignore):
            self._mean(f"ignore[{index}]", value, IGNORE_INDEX)

    def _mean(self, key: str, given: Any, label: int) -> None:
        value = _color(given) if self.by_color else _id(given)
        if value is None:
            self._mismatch(key, self.kind, given)
        else:
            self._once(key, value, as_text(value, self.by_color), self.values)
            self.meaning[value] = label

    def _mismatch(self, key: str, expected: str, given: Any) -> None:
        self.refuse(key, f"must be {expected}, but is {_shown(given)}")

    def _once(self, key: str, value: Any, text: str, seen: dict) -> None:
        first = seen.setdefault(value, key)
        if first != key:
            self.refuse(key, f"{text} is already used in {first}", "each may occur only once")


def _id(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_ID else None


def _color(value: Any) -> int | None:
    """Return a colour as 0xRRGGBB; None if the value is not a colour."""
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return int(value[1:], 16)
    if isinstance(value, list) and len(value) == 3 and all(type(part) is int and 0 <= part <= 255 for part in value):
        return value[0] << 16 | value[1] << 8 | value[2]
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _known(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known, f"known: {', '.join(list(known)[:10])}")


def distinct_colors(taken: Iterable[Color] = ()) -> Iterator[Color]:
    """Yield endless RGB colours in [0, 255] that are easy to tell apart, all different and none of them in `taken`."""
    seen = set(taken)
    for index in itertools.count():
        # multiples of the golden ratio, modulo 1, never come close to each other
        hue = colorsys.hsv_to_rgb(index * 0.61803398875 % 1, 0.65, (0.95, 0.6, 0.75)[index % 3])
        color = tuple(round(255 * part) for part in hue)
        if color not in seen:
            seen.add(color)
            yield color
