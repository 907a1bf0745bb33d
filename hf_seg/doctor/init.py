"""`hf-seg init`: from photographs and masks to a recipe that trains on them and a picture of both."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_seg.data.classes import FILE_NAME, Classes, load_classes
from hf_seg.data.pairs import stored_pairs
from hf_seg.data.sources import class_names, folder
from hf_seg.data.sources import table as hub_dataset
from hf_seg.data.sources import table_files as hub_files
from hf_seg.data.sources.layouts import ALL, find_layout, is_picture_folder
from hf_seg.data.sources.split import SPLITS
from hf_seg.data.spec import report_pairs
from hf_seg.doctor.look import Findings, guess_classes, look_at_pairs, pixel_shares
from hf_seg.doctor.preview import plot_preview
from hf_seg.problem import DataError, PairError
from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import DataRecipe, ModelRecipe, TrainingRecipe
from hf_seg.recipe.reading import parse_json
from hf_seg.text import printable, say

OUTPUTS = ("recipe.json", "preview.png")
WRITTEN = ".hf_seg-init.json"  # hashes of these: --overwrite is for what init itself has written
MAX_IMAGE_SIZE = 256
MIN_STEPS = 1500  # of training: as many as the study's protocol makes on Oxford-IIIT Pet
RARE = 0.001  # share of the pixels below which a class is probably none


@dataclass(frozen=True, kw_only=True)
class Source:
    """A person's own data, before anything is decoded.

    Args:
        name (`str`): for messages.
        keys (`dict[str, Any]`): of the recipe's data section.
        splits (`Mapping[str, Dataset]`): tables with `image` and `mask`, pictures as stored.
        errors (`list[PairError]`): files and rows that are no pair.
        drawn (`bool`): validation, test or both have to be drawn from the other pairs.
        about (`tuple[str, ...]`): lines for people.
        find_names (`Callable`): from what the masks hold, and whether that is colours, the names that the data set has
            for it, and where they stand; or no names, and why.
    """

    name: str
    keys: dict[str, Any]
    splits: Mapping[str, Dataset]
    errors: list[PairError]
    drawn: bool
    find_names: Callable[[Collection[int], bool], tuple[dict[int, str], str]]
    about: tuple[str, ...] = ()


def init(
    source: str | Path,
    *,
    out: str | Path | None = None,
    arch: str = "segformer",
    overwrite: bool = False,
    **table: str | None,
) -> bool:
    """Look at photographs and masks, print what there is, and write `classes.json`, `recipe.json` and `preview.png`.

    Args:
        source (`str` or `Path`): a folder in one of the layouts of docs/data.md, a folder of Parquet files or of what
            `save_to_disk` has written, or a Hub id.
        out (`str` or `Path`, *optional*): the folder to write to, made if need be; by default `source`. A
            `classes.json` that is there is used and kept.
        arch (`str`, *optional*, defaults to `"segformer"`): `"segformer"` or `"fcn"`.
        overwrite (`bool`, *optional*): write `recipe.json` and `preview.png` even where they exist, if they are as
            this function wrote them.
        table (`str`, *optional*): `revision`, `config_name`, `image_column`, `mask_column`, as in a recipe; not for a
            folder of files.

    Returns:
        `bool`: whether all pairs can be used.

    Raises:
        DataError: when the data is not in order, no pair can be used, the masks cannot be classes, or one of the
            files is there already (which is found before anything is looked at).
    """
    place = Path(source).expanduser()
    given = {key: value for key, value in table.items() if value is not None}
    if place.is_dir() and not _is_table(place):
        for option in [*given, *(["out"] if out else [])]:
            raise DataError(
                f"{place.absolute()}: --{option} is for tables and the Hub, and this is a folder of files."
            )
        root = place.resolve()
        _refuse_existing(root, overwrite)
        return _write_all(root, _look_into_folder(root), arch)
    if not place.is_dir() and (out is None or not hub_files.is_hub_id(str(source))):
        hub = " Or, if it is a data set on the Hub, name by --out the folder to write to."
        remedy = f"Correct the path.{hub if hub_files.is_hub_id(str(source)) else ''}"
        raise DataError(f"data.root: there is no folder {place.absolute()}. {remedy}")
    if place.is_dir() and given.get("revision"):
        raise DataError(f"{place.absolute()}: --revision is for data sets on the Hub, and this is a folder.")
    root = Path(out or place).expanduser().resolve()
    _refuse_existing(root, overwrite)
    path = str(place.resolve()) if place.is_dir() else str(source)
    return _write_all(root, _look_into_table(DataRecipe(name="hub", path=path, root=str(root), **given)), arch)


def _is_table(place: Path) -> bool:
    return not is_picture_folder(place) and hub_files.is_table_folder(place)


def _refuse_existing(root: Path, overwrite: bool) -> None:
    existing = [name for name in OUTPUTS if os.path.lexists(root / name)]
    if existing and not overwrite:
        raise DataError(f"{root}: holds {' and '.join(existing)} already; move them away, or add --overwrite.")
    written = _written(root)
    foreign = [name for name in existing if (root / name).is_symlink() or _hash(root / name) != written.get(name)]
    if foreign:
        raise DataError(
            f"{root}: {' and '.join(foreign)} cannot be written over, since init has not written it, or it was "
            "changed since; move it away."
        )


def _written(root: Path) -> dict[str, str]:
    """Name → hash of the files that init has written into a folder, as they were then."""
    try:
        content = parse_json((root / WRITTEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    return content if isinstance(content, dict) else {}


def _hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _look_into_folder(root: Path) -> Source:
    """All pairs; no split is drawn yet."""
    found = folder.list_folder(root)
    places = [root, *(place for _, masks in find_layout(root).values() for place in (masks, masks.parent))]

    def find_names(values: Collection[int], by_color: bool) -> tuple[dict[int, str], str]:
        return class_names.find_names(places, values, by_color=by_color)

    about = [] if ALL in found.splits else [_describe_splits(found.splits)]
    return Source(
        name=str(root),
        keys={"name": "folder", "root": str(root)},
        splits={split: folder.as_dataset(list(pairs.values())) for split, pairs in found.splits.items()},
        errors=found.errors,
        drawn=bool(found.lacking),
        find_names=find_names,
        about=tuple(about + [f"  note    {note}" for note in found.notes]),
    )


def _describe_splits(splits: Mapping[str, Sized]) -> str:
    lacking = [split for split in SPLITS if split not in splits]
    counted = ", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items())
    return f"  splits  {counted}" + (f"; {' and '.join(lacking)} will be drawn from train" if lacking else "")


def _look_into_table(data: DataRecipe) -> Source:
    """The rows that have an image and a mask; no split is drawn yet."""
    name = hub_dataset.data_set_name(data.path)
    tables = hub_files.load_tables(data.path, data.revision, data.config_name)
    rows, columns = hub_dataset.build_rows(data, tables)
    usable, errors = hub_dataset.find_usable(data.path, rows)
    splits = {split: rows[split].select(numbers) for split, numbers in usable.items()}
    features = next(iter(tables.values())).features

    def find_names(values: Collection[int], by_color: bool) -> tuple[dict[int, str], str]:
        return ({}, "") if by_color else hub_files.load_class_names(data.path, data.revision, features, values)

    keys = {key: getattr(data, key) for key in ("name", "root", "path", "revision", "config_name")}
    keys |= {"image_column": columns[0], "mask_column": columns[1]}
    return Source(
        name=name,
        keys=keys,
        splits=splits,
        errors=errors,
        drawn=len(splits) < len(SPLITS),
        find_names=find_names,
        about=(f"  columns {columns[0]} (images), {columns[1]} (masks)", _describe_splits(splits)),
    )


def _write_all(root: Path, source: Source, arch: str) -> bool:
    """Look at all pairs, write the files, and say so."""
    name = source.name
    classes = load_classes(root) if os.path.lexists(root / FILE_NAME) else None
    findings = look_at_pairs(source.splits, classes)
    errors = source.errors + findings.errors
    count = len(findings.looks)
    if not count:
        raise report_pairs(name, errors, len(errors)) if errors else DataError(f"{name}: holds no pair.")
    if count < 3 and source.drawn:
        raise DataError(f"{name}: {count} pairs cannot be split into train, validation and test: it takes 3.")
    written, where = [*OUTPUTS], ""
    if classes is None:
        names, where = source.find_names(findings.counts(), findings.by_color)
        try:
            guessed = guess_classes(findings, names)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        _write(root / FILE_NAME, _format_classes(guessed))
        classes = load_classes(root)
        written.insert(0, FILE_NAME)
        where = f"from {where}" if names else where
    recipe = build_recipe(root, arch, findings, source.keys)
    _write(root / "recipe.json", json.dumps(recipe, indent=2) + "\n")
    shown = [
        next(stored_pairs(split, source.splits[split].select([row])))
        for split, row in list(findings.looks)[:: -(-count // 8)]
    ]
    plot_preview(shown, folder.build_mask_column(root), classes, root / "preview.png")
    _write(root / WRITTEN, json.dumps({name: _hash(root / name) for name in OUTPUTS}, indent=1) + "\n")
    say(_describe(name, findings, classes, source.about, where), keep="\n")
    if errors:
        say(f"\n{report_pairs(name, errors, count + len(errors))}", keep="\n")
        say('Training stops at these, unless data.on_bad_pair in recipe.json is "drop".')
    say()
    say(f"Wrote {', '.join(written)} in {root}. Look at preview.png; correct names and ids in {FILE_NAME}.")
    run = f"hf_seg/train.py {shlex.quote(str(root / 'recipe.json'))} --output_dir {shlex.quote(str(root / 'runs'))}"
    say("With few pictures and a connection, --model.init imagenet learns more; see docs/data.md.")
    say(f"Then: accelerate launch {run}")
    return not errors


def build_recipe(root: Path, arch: str, findings: Findings, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run on the user's own data, every key with its value; `keys` say in the data section what data.

    Image size, batch and epochs follow from the photographs' sizes and number, so that a small data set gets small
    batches, augmentation and many epochs.
    """
    side = statistics.median(min(look.size) for look in findings.looks.values())
    image_size = min(max(int(side) // 32 * 32, 32), MAX_IMAGE_SIZE)
    train = max(1, round(0.8 * len(findings.looks)))
    batch = next((batch for limit, batch in ((200, 8), (1000, 16), (3000, 32)) if train < limit), 64)
    epochs = min(max(math.ceil(MIN_STEPS / math.ceil(train / batch)), 30), 150)
    recipe = Recipe(
        name="recipe",
        path=root / "recipe.json",
        model=ModelRecipe(arch=arch),
        data=DataRecipe(image_size=image_size, augment="standard", **keys),
        training=TrainingRecipe(
            num_train_epochs=epochs, global_train_batch_size=batch, eval_every_epochs=max(1, epochs // 15)
        ),
    )
    return recipe.to_dict()


def _describe(name: str, findings: Findings, classes: Classes, about: tuple[str, ...], names: str) -> str:
    """What is there, for people."""
    looks = findings.looks.values()
    widths, heights = zip(*(look.size for look in looks), strict=True)
    turned = sum(look.turned for look in looks)
    lines = [
        f"{printable(name)}: {len(looks)} pairs",
        *map(printable, about),
        f"  images  {_counted(look.image_kind for look in looks)}; {_sizes(widths, heights)}"
        + (f"; turned upright: {turned}" if turned else ""),
        f"  masks   {_counted(look.mask_kind for look in looks)}; {'colours' if findings.by_color else 'ids'}",
        *([f"  names   {printable(names)}"] if names else []),
    ]
    shares = [(value, printable(label), *counts) for value, label, *counts in pixel_shares(findings, classes)]
    width = max(len(label) for _, label, *_ in shares)
    for value, label, share, pictures in shares:
        lines.append(f"  {value:>8}  {label:<{width}}  {share:7.2%} of the pixels, in {pictures} pictures")
    rare = sum(0 < share < RARE for *_, share, _ in shares)
    if rare > len(shares) / 2 and len(shares) > 8:
        lines.append(f"  {rare} of these are on less than {RARE:.1%} of the pixels: values of smoothed outlines?")
    return "\n".join(lines)


def _counted(kinds) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def _sizes(widths: tuple[int, ...], heights: tuple[int, ...]) -> str:
    smallest, largest = f"{min(widths)}×{min(heights)}", f"{max(widths)}×{max(heights)}"
    return f"{smallest} pixels" if smallest == largest else f"{smallest} to {largest} pixels"


def _format_classes(content: dict[str, Any]) -> str:
    """JSON with a line for each class, which is easier to edit."""
    classes = ",\n".join(f"    {json.dumps(entry)}" for entry in content["classes"])
    rest = "".join(
        f",\n  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "classes"
    )
    return f'{{\n  "classes": [\n{classes}\n  ]{rest}\n}}\n'


def _write(path: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; make the folder writable") from None
