"""Which pairs a run would read, for looking at them only: nothing is downloaded, unpacked, written, or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, DatasetDict, Features

from hf_seg.data import columns as own_images
from hf_seg.data import file_search, load_spec, load_splits, pairs, palettes, stored_image
from hf_seg.data.classes import FILE_NAME
from hf_seg.data.columns import ClassMask, UprightImage
from hf_seg.data.sources import cityscapes, folder, oxford_pet
from hf_seg.data.sources import table as hub_dataset
from hf_seg.data.sources.archives import examine_archives
from hf_seg.data.sources.download import find_folder
from hf_seg.data.sources.layouts import ALL
from hf_seg.data.sources.split import SPLITS, draw_split, load_row_split
from hf_seg.data.sources.table_files import load_tables
from hf_seg.data.spec import DatasetSpec
from hf_seg.data.stored_image import StoredImage
from hf_seg.problem import DataError, Level, PairError, Problem

if TYPE_CHECKING:
    from hf_seg.recipe.keys import DataRecipe

OFFICIAL = {"oxford_pet": oxford_pet, "cityscapes": cityscapes}

# the code of a pair that cannot be used, by the remedy that its error names; every other one is about values
CODES = {
    stored_image.DAMAGED: "undecodable",
    stored_image.TEXT: "undecodable",
    stored_image.HUGE: "huge-image",
    stored_image.DEEP: "deep-image",
    stored_image.BANDS: "many-bands",
    stored_image.PAGES: "many-pages",
    stored_image.IN_ALPHA: "mask-kind",
    pairs.SIZES: "size-mismatch",
    pairs.SAME: "size-mismatch",
    pairs.TURNED: "size-mismatch",
    pairs.CHANNELS: "mask-kind",
    own_images.NO_LABELS: "mask-kind",
    own_images.COLOURS: "mask-kind",
    palettes.OTHER_PALETTE: "mask-palettes",
    folder.KINDS: "mask-kind",
    folder.ONE_TO_ONE: "unpaired",
    hub_dataset.EMPTY: "unpaired",
    hub_dataset.UNLABELLED: "unpaired",
    hub_dataset.OUTSIDE: "outside-file",
    file_search.RENAME: "file-name",
    file_search.LINKS: "unreachable",
    file_search.READABLE: "unreachable",
    file_search.NO_FILE: "unreachable",
}


@dataclass(kw_only=True)
class Gathered:
    """The pairs of a data section.

    Args:
        place (`str`): the data set, for messages.
        spec ([`DatasetSpec`], *optional*): None when it cannot be had.
        splits (`DatasetDict`, *optional*): None when there is nothing to look at; one split, `pairs`, where the pairs
            are there and it is not known which split they belong to.
        findings (`list[Problem]`): what is wrong before any pair is decoded.
    """

    place: str
    spec: DatasetSpec | None = None
    splits: DatasetDict | None = None
    findings: list[Problem] = field(default_factory=list)

    @property
    def split_known(self) -> bool:
        return self.splits is not None and ALL not in self.splits

    def refuse(self, code: str, error: DataError, file: Path | None = None) -> None:
        """Record what a run would stop with."""
        place = str(file or self.place)
        what, remedy = explain(str(error).removeprefix(f"{place}: "))
        self.findings.append(Problem(level="error", code=code, place=place, what=what, remedy=remedy))

    def note(self, code: str, what: str, remedy: str) -> None:
        self.findings.append(Problem(level="note", code=code, place=self.place, what=what, remedy=remedy))


def explain(message: str) -> tuple[str, str]:
    """What is wrong and what to do, of an error's text: by their style, the remedy is the last line, or what follows
    the first full stop, semicolon or colon."""
    for sign, cut in (("\n", str.rpartition), (". ", str.partition), ("; ", str.partition), (": ", str.partition)):
        what, found, remedy = cut(message, sign)
        if found:
            return what.rstrip(":"), remedy
    return message, ""


def gather(data: DataRecipe) -> Gathered:
    """Find the pairs of a data section, with `on_bad_pair` having no effect on which they are."""
    if data.name in OFFICIAL:
        return _gather_official(data)
    if data.name == "folder":
        return _gather_folder(data)
    gathered = Gathered(place=hub_dataset.data_set_name(data.path) if data.name == "hub" else data.name)
    try:
        gathered.spec = load_spec(data)
        gathered.splits = load_splits(data) if data.name != "hub" else _hub_splits(data, gathered)
    except DataError as error:
        gathered.refuse("data-set", error)
    return gathered


def _gather_official(data: DataRecipe) -> Gathered:
    source = OFFICIAL[data.name]
    gathered = Gathered(place=f"data.root {data.root}" if data.root else data.name, spec=load_spec(data))
    try:
        place = find_folder(data.root, source.FOLDER_NAME, source.PARTS)
    except DataError as error:
        gathered.refuse("data-set", error)
        return gathered
    gathered.place = str(place)
    gathered.findings += source.examine(place, may_download=data.root is None)
    if all((place / part).is_dir() for part in source.PARTS):
        try:
            gathered.splits = load_splits(data)
        except DataError as error:
            gathered.findings += error.problems
            features = Features({"image": StoredImage(mode="RGB"), "mask": StoredImage()})
            gathered.splits = _heap(source.find_pairs(place), features)
    return gathered


def _gather_folder(data: DataRecipe) -> Gathered:
    gathered = Gathered(place=str(data.root))
    try:
        root = folder.find_root(data.root)
    except DataError as error:
        gathered.refuse("data-set", error)
        return gathered
    gathered.place = str(root)
    gathered.findings += examine_archives(root)
    mask: StoredImage | ClassMask = StoredImage(mode="L")  # decodes, whatever it means
    try:
        found = folder.list_folder(root)
    except DataError as error:
        gathered.refuse("data-set", error)
        return gathered
    for note in found.notes:
        place, _, what = note.partition(": ")
        what, remedy = explain(what)
        gathered.findings.append(Problem(level="warning", code="split", place=place, what=what, remedy=remedy))
    try:
        gathered.spec, mask = folder.build_spec(root), folder.build_mask_column(root)
    except DataError as error:
        for line in str(error).splitlines():
            gathered.refuse("classes-json", DataError(line), root / FILE_NAME)
    bad: Level = "warning" if data.on_bad_pair == "drop" else "error"
    gathered.findings += [as_finding(error, bad) for error in found.errors]
    features = Features({"image": UprightImage(), "mask": mask})
    try:
        pairs = folder.divide(root, found)[0]
    except DataError as error:
        gathered.refuse("split", error)
        pairs = {ALL: [pair for listed in found.splits.values() for pair in listed.values()]}
    gathered.splits = _tables(pairs, data, features)
    return gathered


def _hub_splits(data: DataRecipe, gathered: Gathered) -> DatasetDict:
    """The splits of a table, which is loaded, from the Hub when it is there; what is drawn of them is not yet kept."""
    rows, _ = hub_dataset.build_rows(data, load_tables(data.path, data.revision, data.config_name))
    usable, errors = hub_dataset.find_usable(data.path, rows)
    bad: Level = "warning" if data.on_bad_pair == "drop" else "error"
    gathered.findings += [as_finding(error, bad) for error in errors]
    root = hub_dataset.find_hub_root(data)
    lacking = [split for split in SPLITS if split not in usable]
    if load_row_split(root) is None and lacking and len(usable["train"]) > len(lacking):
        mask = folder.build_mask_column(root)
        drawn = draw_split(usable["train"].tolist(), lacking)
        splits = {}
        for split in SPLITS:
            chosen = rows["train"].select(drawn[split]) if split in drawn else rows[split].select(usable[split])
            splits[split] = chosen.cast_column("image", UprightImage()).cast_column("mask", mask)
    else:  # nothing to be written
        splits = hub_dataset.load_hub_splits(replace(data, on_bad_pair="drop"))[0]
    return DatasetDict({split: table.take(min(len(table), _limit(data, split))) for split, table in splits.items()})


def _limit(data: DataRecipe, split: str) -> int:
    limit = getattr(data, f"max_{split}_samples", None)
    return 2**62 if limit is None else limit


def _heap(pairs: Sequence[folder.Pair], features: Features) -> DatasetDict | None:
    return DatasetDict({ALL: _table(pairs, features)}) if pairs else None


def _tables(pairs: Mapping[str, Sequence[folder.Pair]], data: DataRecipe, features: Features) -> DatasetDict:
    return DatasetDict({split: _table(listed[: _limit(data, split)], features) for split, listed in pairs.items()})


def _table(pairs: Sequence[folder.Pair], features: Features) -> Dataset:
    columns = {"image": [str(image) for image, _ in pairs], "mask": [str(mask) for _, mask in pairs]}
    return Dataset.from_dict(columns, features=features)


def as_finding(error: PairError, level: Level) -> Problem:
    """A pair that cannot be used."""
    code = CODES.get(error.problem.remedy, "mask-values")
    return replace(error.problem, level=level, code=code)
