"""Data sources: what their masks mean, and which pairs they contain. Add a new source here, and its name in
recipe/keys.py; CONTRIBUTING.md has the steps.
"""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset, DatasetDict, Features

from hf_seg.data.columns import StoredImage
from hf_seg.data.pairs import ALL, Listing
from hf_seg.data.sources import archives, cityscapes, folder, oxford_pet, synthetic, table, table_files
from hf_seg.data.sources.download import fetch_parts, find_folder
from hf_seg.data.sources.layouts import find_layout, is_picture_folder
from hf_seg.data.spec import DatasetSpec
from hf_seg.problem import DataError, Problem
from hf_seg.recipe.keys import DataRecipe

OFFICIAL = {"oxford_pet": oxford_pet, "cityscapes": cityscapes}
SPECS = {spec.name: spec for spec in (oxford_pet.SPEC, cityscapes.SPEC, synthetic.PET_SPEC, synthetic.CITYSCAPES_SPEC)}


def load_spec(data: DataRecipe) -> DatasetSpec:
    """Return the spec of a recipe's data set. No picture is read; your own data needs its `classes.json`."""
    if data.name == "folder":
        root = folder.find_root(data.root)
        return folder.build_spec(root, find_layout(root, data.layout))
    return table.build_hub_spec(data) if data.name == "hub" else SPECS[data.name]


def recognise(root: Path) -> list[DataRecipe]:
    """Return data sections for the known data sets in a folder; if there are none, one that reads it as your own."""
    found, own = [], any((root / name).exists() for name in ("masks", "classes.json"))
    for name, source in ({} if own else OFFICIAL).items():
        place = find_folder(source, str(root))
        files = [place / archive.file_name for archive in source.ARCHIVES]
        if (place / source.SIGN).is_dir() or any(file.is_file() for file in files):
            found.append(DataRecipe(name=name, root=str(root)))
    if not found and not is_picture_folder(root) and table_files.is_table_folder(root):
        return [DataRecipe(name="hub", path=str(root))]
    return found or [DataRecipe(name="folder", root=str(root))]


def fetch(data: DataRecipe) -> None:
    """Download and unpack the missing parts of a data set that hf_seg knows."""
    if source := OFFICIAL.get(data.name):
        fetch_parts(source, find_folder(source, data.root), may_download=data.root is None)


def list_data(data: DataRecipe) -> Listing:
    """List the pairs of a data section as they exist now: the first `max_*_samples` of each split.

    Nothing is written to the data's folder, and only tables of the Hub are downloaded. Generated data is drawn.
    """
    limits = {split: getattr(data, f"max_{split}_samples") for split in ("train", "validation", "test")}
    if data.name in synthetic.DRAW:
        drawn = _as_stored(synthetic.generate(data.name, limits))
        return Listing(place=data.name, spec=SPECS[data.name], splits=drawn)
    if data.name == "folder":
        listing = folder.list_folder(data)
    else:
        listing = table.list_table(data) if data.name == "hub" else _list_official(data)
    for split, dataset in (listing.splits or {}).items():
        if limit := limits.get(split):
            listing.splits[split] = dataset.take(min(limit, len(dataset)))
    return listing


def examine_archives(data: DataRecipe, place: Path) -> list[Problem]:
    """Report what a run would download or unpack first, and what is wrong with archives in the data's folder."""
    if source := OFFICIAL.get(data.name):
        return archives.examine_parts(source, place, may_download=data.root is None) if place.is_absolute() else []
    return list(archives.examine_archives(place)) if data.name == "folder" and place.is_dir() else []


def _list_official(data: DataRecipe) -> Listing:
    source = OFFICIAL[data.name]
    listing = Listing(place=data.root or data.name, spec=source.SPEC)
    with listing.going_on():
        place = find_folder(source, data.root)
        listing.place = str(place)
        if all((place / part).is_dir() for part in source.PARTS):
            pairs = {ALL: source.find_pairs(place)}
            with listing.going_on():
                pairs = source.list_pairs(place)
                for split, listed in pairs.items():
                    if not listed:
                        raise DataError(place, f"the {split} split of {data.name} is empty", source.SPLIT_RULE)
            listing.splits = _as_stored({split: folder.as_columns(listed) for split, listed in pairs.items()})
    return listing


def _as_stored(columns: dict[str, dict[str, list]]) -> DatasetDict:
    """Build tables of paths or encoded bytes, which are decoded on access, without EXIF rotation."""
    features = Features({"image": StoredImage(mode="RGB"), "mask": StoredImage()})
    return DatasetDict({split: Dataset.from_dict(table, features=features) for split, table in columns.items()})
