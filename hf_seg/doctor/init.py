"""`hf-seg init`: examine photographs and masks, and write a recipe that trains on them and a preview of both."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import shutil
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Image

from hf_seg.data import NO_PAIR
from hf_seg.data.classes import FILE_NAME, Classes, load_classes, read_classes
from hf_seg.data.columns import UprightImage, as_text
from hf_seg.data.file_search import ANNOTATIONS
from hf_seg.data.pairs import ALL, map_pairs, report_pairs, stored_pairs
from hf_seg.data.sources import class_names, folder, oxford_pet, polygons, table_files
from hf_seg.data.sources.layouts import find_layout, is_picture_folder
from hf_seg.data.sources.split import FILE_NAME as SPLIT_FILE
from hf_seg.data.sources.split import SPLITS, check_enough, draw_folders, join_names, save_split
from hf_seg.data.sources.table import build_rows, find_usable
from hf_seg.data.spec import IGNORE_INDEX
from hf_seg.data.stored_image import measure_range, sample_values
from hf_seg.doctor.duplicates import find_duplicates
from hf_seg.doctor.mask_values import guess_classes, hint_at_classes, survey_classes, survey_masks
from hf_seg.doctor.preview import plot_preview
from hf_seg.doctor.survey import RARE, PairFacts, Survey
from hf_seg.files import check_writable, parse_json, write_text
from hf_seg.problem import DataError, Problem, Refusal
from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import DataRecipe, ModelRecipe, TrainingRecipe
from hf_seg.text import printable, say

OUTPUTS = ("recipe.json", "preview.png")
WRITTEN = ".hf_seg-init.json"  # their hashes: --overwrite replaces only files that init itself has written
MAX_IMAGE_SIZE = 256  # pixels; root of height × width of the model's input
LARGE, WINDOW = 1024, 512  # pixels; pictures whose longer side is above LARGE are trained on in windows of WINDOW
SQUARE = 1.05  # a picture counts as square up to this longer side ÷ shorter side
ALIKE = 0.1  # share of the pictures that look like another one, from which on folders are held out
MAX_ALIKE = 1_000_000  # at most this many pairs of similar pictures are used
MEASURED = 100  # at most this many pictures per split are used to measure the value range
MIN_STEPS = 1500  # training steps, as in the study's protocol on Oxford-IIIT Pet


@dataclass(frozen=True, kw_only=True)
class Source:
    """Your own data, before anything is decoded."""

    name: str  # for messages
    keys: dict[str, Any]  # keys of the recipe's data section
    splits: Mapping[str, Dataset]  # tables with `image` and `mask`, not decoded; no split is drawn yet
    problems: list[Problem]  # files and rows that are not a pair
    # takes the values in the masks and whether they are colours; returns the data set's names (value → name) and their
    # source, or no names and the reason
    find_names: Callable[[Collection[int], bool], tuple[dict[int, str], str]]
    about: list[str]  # lines of the printed description
    written: list[str] = field(default_factory=list)  # files that init has drawn from annotations
    to_divide: tuple[str, list[str]] = ("", [])  # the split that lacking splits are drawn from, and its pairs' names


def init(
    source: str | Path,
    *,
    out: str | Path | None = None,
    arch: str = "segformer",
    layout: str | None = None,
    overwrite: bool = False,
    **table: str | None,
) -> bool:
    """Examine photographs and masks, print a description, and write `classes.json`, `recipe.json` and `preview.png`.

    Args:
        source: a folder in one of the layouts of docs/data.md, a folder of Parquet files, a folder that `save_to_disk`
            has written, or a Hub id.
        out: the folder to write to, created if necessary; by default `source`. Not allowed for a folder with masks. A
            `classes.json` in it is used and kept.
        arch (`str`): `"segformer"` or `"fcn"`.
        layout (`str`, *optional*): the layout of a folder that matches several; or, for a folder that matches none,
            the patterns of its files as `IMAGES + MASKS`.
        overwrite (`bool`): replace `recipe.json` and `preview.png` if they are as this function wrote them.
        table (`str`, *optional*): `revision`, `config_name`, `image_column`, `mask_column`, as in a recipe; not for a
            folder of files.

    Returns:
        `bool`: whether all pairs can be used.

    Raises:
        DataError: when an argument is wrong, too few pairs can be used, the values of the masks cannot be classes, or
            one of the files exists already.
    """
    place = Path(source).expanduser()
    given = {key: value for key, value in table.items() if value is not None}
    of_files = place.is_dir() and (is_picture_folder(place) or not table_files.is_table_folder(place))
    on_hub = table_files.is_hub_id(str(source))
    if not place.is_dir() and (out is None or not on_hub):
        remedy = "Correct the path."
        if on_hub:
            remedy += " Or, if it is a data set on the Hub, name the folder to write to with --out."
        raise DataError("data.root", f"there is no folder {place.absolute()}", remedy)
    if layout is None and (place / oxford_pet.SIGN).is_dir():
        what = "is the official release of Oxford-IIIT Pet, with splits and classes of its own"
        command = f"hf-seg train oxford-pet-segformer-scratch --data.root {shlex.quote(str(place.absolute()))}"
        raise DataError(place.absolute(), what, f"It needs no init: `{command}`.")
    if layout and not of_files:
        raise DataError(source, "--layout is for a folder of files, but this is not one", "Leave it out.")
    for option in given:
        if of_files or (option == "revision" and place.is_dir()):
            what = "tables and the Hub, but this is a folder of files"
            what = what if of_files else "data sets on the Hub, but this is a folder"
            flag = f"--{option.replace('_', '-')}"
            raise DataError(place.absolute(), f"{flag} is for {what}", "Leave it out.")
    root = Path(out or place).expanduser().resolve()
    if place.is_dir():
        folder.find_root(str(place))
    check_writable(root, "name another folder with --out" if out else "make the folder writable")
    _refuse_existing(root, overwrite)
    if of_files:
        kind = find_layout(place.resolve(), layout).name
        if kind in ANNOTATIONS:
            if existing := [name for name in ("masks", FILE_NAME) if os.path.lexists(root / name)]:
                what = f"already holds {' and '.join(existing)}, which init would draw from the {kind} annotations"
                raise DataError(root, what, "move them away, or draw elsewhere with --out.", code="exists")
            drawn = polygons.draw(place.resolve(), root, kind)
            try:
                return _write_all(root, _list_folder(root, None, drawn), arch)
            except Refusal:  # nothing is left behind: the next init must draw again
                shutil.rmtree(root / "masks")
                (root / FILE_NAME).unlink()
                raise
        elif out:
            what = "--out is for tables, the Hub and annotations that init draws, but this is a folder of masks"
            raise DataError(place.absolute(), what, "Leave it out.")
        return _write_all(root, _list_folder(root, layout, []), arch)
    path = str(place.resolve()) if place.is_dir() else str(source)
    return _write_all(root, _list_table(DataRecipe(name="hub", path=path, root=str(root), **given)), arch)


def _refuse_existing(root: Path, overwrite: bool) -> None:
    existing = [name for name in OUTPUTS if os.path.lexists(root / name)]
    if existing and not overwrite:
        what = f"already holds {' and '.join(existing)}"
        raise DataError(root, what, "move them away, or add --overwrite.", code="exists")
    try:
        written = dict(parse_json((root / WRITTEN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        written = {}
    foreign = [name for name in existing if (root / name).is_symlink() or _hash(root / name) != written.get(name)]
    if foreign:
        what = "is not replaced: init did not write it, or it was changed"
        raise DataError(root, f"{' and '.join(foreign)} {what}", "move it away.", code="exists")


def _hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _list_folder(root: Path, layout: str | None, drawn: list[str]) -> Source:
    found = folder.find_pairs(root, layout)
    parts = found.layout.parts.values()
    places = [root, *(place for part in parts for place in (part.masks, part.masks.parent))]
    about = [f"  layout  {found.layout}", *drawn] + ([] if ALL in found.splits else [_describe_splits(found.splits)])
    whole = ALL if ALL in found.splits else "train"
    return Source(
        name=str(root),
        keys={"name": "folder", "root": str(root), "layout": layout},
        splits={split: folder.build_table(list(pairs.values()), Image()) for split, pairs in found.splits.items()},
        problems=found.problems,
        find_names=partial(class_names.find_names, places),
        about=about + [f"  note    {note}" for note in found.notes],
        written=["masks", FILE_NAME] if drawn else [],
        to_divide=(whole, list(found.splits[whole])) if found.lacking else ("", []),
    )


def _list_table(data: DataRecipe) -> Source:
    tables = table_files.load_tables(data.path, data.revision, data.config_name)
    rows, columns = build_rows(data, tables)
    usable, problems = find_usable(data.path, rows)
    splits = {split: rows[split].select(numbers) for split, numbers in usable.items()}
    features = next(iter(tables.values())).features
    keys = {key: getattr(data, key) for key in ("name", "root", "path", "revision", "config_name")}
    return Source(
        name=table_files.data_set_name(data.path),
        keys=keys | {"image_column": columns[0], "mask_column": columns[1]},
        splits=splits,
        problems=problems,
        find_names=partial(table_files.load_class_names, data.path, data.revision, features),
        about=[f"  columns {columns[0]} (images), {columns[1]} (masks)", _describe_splits(splits)],
    )


def _describe_splits(splits: Mapping[str, Collection]) -> str:
    lacking = [split for split in SPLITS if split not in splits]
    counted = ", ".join(f"{len(pairs)} {split}" for split, pairs in splits.items())
    return f"  splits  {counted}" + (f"; {' and '.join(lacking)} will be drawn from train" if lacking else "")


def _write_all(root: Path, source: Source, arch: str) -> bool:
    """Examine all pairs, write the files, and print a description. Return whether all pairs can be used."""
    source = _with_value_range(source)
    name, written, where = source.name, [*source.written, *OUTPUTS], ""
    classes = load_classes(root) if os.path.lexists(root / FILE_NAME) else None
    survey, by_color = survey_classes(source.splits, root) if classes else survey_masks(source.splits)
    problems = source.problems + [problem for problem in survey.problems if problem.level == "error"]
    count = len(survey.facts)
    lacking = [split for split in SPLITS[1:] if split not in source.splits]
    empty = [split for split, rows in survey.usable.items() if not rows]
    left = len(survey.usable.get(ALL, survey.usable.get("train", ())))
    if problems and (empty or left <= len(lacking)):
        raise report_pairs(name, problems, count + len(problems))
    if not count:
        raise DataError(name, "holds no pair", "Is this the right folder?")
    check_enough(name, left, lacking)
    if empty:
        raise DataError(name, f"the {empty[0]} split has no usable pair", NO_PAIR, code="empty-split")
    if classes is None:
        names, where = source.find_names(survey.pixels(), by_color)
        guessed = guess_classes(name, survey, by_color, names)
        read_classes(guessed, str(root / FILE_NAME))  # raises for content that must not be written
        write_text(_format_classes(guessed), root / FILE_NAME)
        classes = load_classes(root)
        written.insert(0, FILE_NAME)
        where = f"from {where}" if names else where
        for facts in survey.facts:
            facts.counts = {classes.meaning[value]: pixels for value, pixels in facts.counts.items()}
    hints = [*hint_at_classes(survey, classes), *_divide_films(root, source, survey, written)]
    recipe = build_recipe(root, arch, [facts.size for facts in survey.facts], source.keys)
    write_text(json.dumps(recipe, indent=2) + "\n", root / "recipe.json")
    rows = [(split, row) for split, pairs in survey.usable.items() for row in pairs][:: -(-count // 8)]
    shown = [next(stored_pairs({split: source.splits[split].select([row])})) for split, row in rows]
    plot_preview(shown, source.splits[rows[0][0]].features["image"], classes, root / "preview.png")
    write_text(json.dumps({name: _hash(root / name) for name in OUTPUTS}, indent=1) + "\n", root / WRITTEN)
    say("\n".join([_describe(source, survey, classes, by_color, where), *map(printable, hints)]), keep="\n")
    if problems:
        say(f"\n{report_pairs(name, problems, count + len(problems))}", keep="\n")
        say('Training stops at these, unless data.on_bad_pair in recipe.json is "drop".')
    say()
    say(f"Wrote {', '.join(written)} in {root}. Look at preview.png; correct names and ids in {FILE_NAME}.")
    recipe_file, runs, run = (shlex.quote(str(root / name)) for name in ("recipe.json", "runs", "runs/recipe"))
    say(f"How long it takes on this machine: hf-seg doctor {recipe_file}")
    say("With few pictures and an internet connection, add --model.init imagenet to the next command.")
    say(f"Then: hf-seg train {recipe_file} --output_dir {runs}")
    say(f"Then: hf-seg predict {run} PHOTOGRAPHS --out predictions")
    return not problems


def _divide_films(root: Path, source: Source, survey: Survey, written: list[str]) -> Iterator[str]:
    """Hold out whole folders, or hint at it, if many pictures look like another one in their folder, as frames of a
    film do: a random split would test on pictures that look like those of train."""
    split, names = source.to_divide
    held_out = [name for name in SPLITS[1:] if name not in source.splits]
    if not survey.usable.get(split) or os.path.lexists(root / SPLIT_FILE):
        return
    names = [names[row] for row in survey.usable[split]]
    copies = find_duplicates(np.stack([facts.thumbnail for facts in survey.usable[split].values()]))
    pairs = ((names[one], names[other]) for one, other, _ in islice(copies, MAX_ALIKE))
    alike = set().union(*(pair for pair in pairs if len(set(map(_folder_of, pair))) == 1))
    if len(alike) < ALIKE * len(names):
        return
    found = f"{len(alike)} of {len(names)} pictures look like another one in their folder, as frames of a film do"
    drawn = draw_folders(names, held_out)
    if drawn and _keeps_classes(drawn["train"], names, survey.usable[split].values()):
        save_split(root, drawn if split == ALL else {name: drawn[name] for name in held_out}, "write split.json")
        written.append(SPLIT_FILE)
        folders = {name: dict.fromkeys(map(_folder_of, drawn[name])) for name in held_out}
        parts = [f"{', '.join(each)} ({len(drawn[name])} pictures) for {name}" for name, each in folders.items()]
        yield f"  split   {found}; so whole folders are held out: {join_names(parts)}."
        yield "          Delete split.json for a random split."
    else:
        yield f"  hint    {found}: a random split tests on pictures that look like those of train."
        yield "          Sort them into one folder per film and repeat this, or write split.json (docs/data.md)."


def _keeps_classes(train: Collection[str], names: Sequence[str], facts: Iterable[PairFacts]) -> bool:
    """Whether all classes occur in train, as they do not where each folder holds a class."""
    classes = {name: each.counts.keys() for name, each in zip(names, facts, strict=True)}
    return set().union(*classes.values()) == set().union(*(classes[name] for name in train))


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _with_value_range(source: Source) -> Source:
    """Return the source with photographs decoded as in training. Those with more than 8 bits are scaled by the range
    that most of their values lie in, which becomes `data.value_range`."""
    parts = {
        split: dataset.select(range(0, len(dataset), 1 + len(dataset) // MEASURED))
        for split, dataset in source.splits.items()
    }
    measured = map_pairs(lambda pair: sample_values(pair.image), parts, desc="Measuring", disable_bar=True)
    deep = [values for _, values in measured if values is not None]
    value_range, about = None, []
    if deep:
        value_range = low, high = measure_range(np.concatenate(deep))
        what = f"become black and white (1st and 99th percentile of {len(deep)} images with more than 8 bits)"
        about = [f"  values  {low:g} and {high:g} {what}: data.value_range"]
    column = UprightImage(value_range=value_range)
    return replace(
        source,
        keys=source.keys | {"value_range": value_range},
        splits={split: dataset.cast_column("image", column) for split, dataset in source.splits.items()},
        about=source.about + about,
    )


def build_recipe(root: Path, arch: str, sizes: Collection[tuple[int, int]], keys: Mapping[str, Any]) -> dict[str, Any]:
    """Build the recipe of a run on your own data with all its keys; a small data set gets small batches and many
    epochs. `sizes` are widths and heights of the pictures; `keys` of the data section say which data."""
    framing, _ = propose_framing(sizes)
    train = max(1, round(0.8 * len(sizes)))
    batch = next((batch for limit, batch in ((200, 8), (1000, 16), (3000, 32)) if train < limit), 64)
    batch = min(batch, 8) if framing["resize"] == "crop" else batch
    epochs = min(max(math.ceil(MIN_STEPS / math.ceil(train / batch)), 30), 150)
    data = DataRecipe(**framing, augment="standard", **keys)
    often = max(1, epochs // 15)
    training = TrainingRecipe(num_train_epochs=epochs, global_train_batch_size=batch, eval_every_epochs=often)
    path, model = root / "recipe.json", ModelRecipe(arch=arch)
    recipe = Recipe(name="recipe", path=path, model=model, data=data, training=training).to_dict()
    recipe["data"]["normalize"] = "auto"  # not "none", so that `--model.init imagenet` needs no other change
    return recipe


def propose_framing(sizes: Collection[tuple[int, int]]) -> tuple[dict[str, Any], str]:
    """Choose `image_size` and `resize` for photographs of these widths and heights; return them and the reason."""
    width, height = (statistics.median(each) for each in zip(*sizes, strict=True))
    if statistics.median(max(size) for size in sizes) > LARGE:
        why = f"most are larger than {LARGE} pixels: training sees windows of them, so that small things stay visible"
        return {"image_size": WINDOW, "resize": "crop"}, why
    scale = min(1, MAX_IMAGE_SIZE / math.sqrt(width * height))
    # the nearest multiple of 32 (at least 32) that does not enlarge the picture
    size = [max(32, min(round(side * scale / 32), side // 32) * 32) for side in (height, width)]
    square = sum(max(each) <= SQUARE * min(each) for each in sizes) > len(sizes) / 2
    why = "most are square" if square else "most are not square: padding keeps their shape"
    sides = [int(min(size))] * 2 if square else [int(side) for side in size]
    resize = "stretch" if square else "letterbox"
    return {"image_size": sides[0] if sides[0] == sides[1] else sides, "resize": resize}, why


def _describe(source: Source, survey: Survey, classes: Classes, by_color: bool, names: str) -> str:
    """Describe the pairs as printed text: images, masks, input size and the share of each class."""
    pairs = survey.facts
    sides = list(zip(*(facts.size for facts in pairs), strict=True))  # widths, heights
    sizes = dict.fromkeys("×".join(str(pick(side)) for side in sides) for pick in (min, max))
    images = f"  images  {_counted(facts.image_kind for facts in pairs)}; {' to '.join(sizes)} pixels"
    if turned := sum(facts.turned for facts in pairs):
        images += f"; turned upright: {turned}"
    framing, why = propose_framing([facts.size for facts in pairs])
    size = framing["image_size"] if isinstance(framing["image_size"], list) else [framing["image_size"]] * 2
    if gray := sum(facts.gray for facts in pairs):
        images += f"; one channel, used for red, green and blue: {gray}"
    masks = f"  masks   {_counted(facts.mask_kind for facts in pairs)}; {'colours' if by_color else 'ids'}"
    lines = [f"{source.name}: {len(pairs)} pairs", *source.about, images, masks]
    lines.append(f"  size    {size[1]}×{size[0]} by {framing['resize']}, since {why}")
    if names:
        lines.append(f"  names   {names}")
    shares = [(values, printable(label), *rest) for values, label, *rest in class_shares(survey, classes)]
    width = max(len(label) for _, label, *_ in shares)
    for values, label, share, pictures in shares:
        lines.append(f"  {values:>8}  {label:<{width}}  {share:7.2%} of the pixels, in {pictures} pictures")
    rare = sum(0 < share < RARE for *_, share, _ in shares)
    if rare > len(shares) / 2 and len(shares) > 8:
        lines.append(f"  {rare} of these cover less than {RARE:.1%} of the pixels: values of smoothed outlines?")
    return "\n".join(map(printable, lines))


def class_shares(survey: Survey, classes: Classes) -> list[tuple[str, str, float, int]]:
    """For each class and for ignored pixels: values in the masks, name, share of all pixels, number of pictures."""
    counts, rows = survey.pixels(), []
    for label, name in [*enumerate(classes.names), (IGNORE_INDEX, "(ignored)")]:
        values = [as_text(value, classes.by_color) for value, means in classes.meaning.items() if means == label]
        if values and (label < IGNORE_INDEX or counts[label]):
            seen = sum(label in facts.counts for facts in survey.facts)
            rows.append((", ".join(values), name, counts[label] / max(1, counts.total()), seen))
    return rows


def _counted(kinds: Iterable[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(kinds).most_common())


def _format_classes(content: dict[str, Any]) -> str:
    """Format JSON with one line per class, which is easy to edit."""
    classes = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False)}" for entry in content["classes"])
    rest = f',\n  "ignore": {json.dumps(content["ignore"])}' if "ignore" in content else ""
    return f'{{\n  "classes": [\n{classes}\n  ]{rest}\n}}\n'
