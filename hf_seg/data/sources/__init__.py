"""Where data comes from: what its masks mean, and which pairs it holds. A new data source is added here, and its
name in recipe/keys.py; CONTRIBUTING.md has the steps.
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
    """What the masks of a recipe's data set mean; no file is read but the `classes.json` of your own data."""
    if data.name == "folder":
        root = folder.find_root(data.root)
        return folder.build_spec(root, find_layout(root, data.layout))
    return table.build_hub_spec(data) if data.name == "hub" else SPECS[data.name]


def recognise(root: Path) -> list[DataRecipe]:
    """The data sets that a folder holds, one of them your own if there is no other."""
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
    """Download and unpack what is not there yet of a data set that hf_seg knows."""
    if source := OFFICIAL.get(data.name):
        fetch_parts(source, find_folder(source, data.root), may_download=data.root is None)


def list_data(data: DataRecipe) -> Listing:
    """List the pairs of a data section as they are there now, of each split the first `max_*_samples`.

    Nothing is written, and nothing is downloaded but a table from the Hub. Generated data is drawn.
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
    """What a run would download or unpack first, and what is wrong with the archives in a data set's folder."""
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
    """Paths or encoded bytes go into the table as they are, and are decoded on access, without EXIF rotation."""
    features = Features({"image": StoredImage(mode="RGB"), "mask": StoredImage()})
    return DatasetDict({split: Dataset.from_dict(table, features=features) for split, table in columns.items()})
