"""A data set with an image and a mask column: on the Hugging Face Hub, in Parquet files, or written by `save_to_disk`.

The pictures' bytes are in Arrow tables that `datasets` memory-maps; nothing here reads a whole column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, DatasetDict, Image
from pyarrow import compute

from hf_seg.data.classes import load_classes
from hf_seg.data.columns import UprightImage
from hf_seg.data.pairs import Listing
from hf_seg.data.sources.folder import build_own_spec, find_root
from hf_seg.data.sources.split import (
    FILE_NAME,
    SPLITS,
    UNLABELLED,
    check_enough,
    draw_split,
    find_splits,
    load_row_split,
    save_split,
)
from hf_seg.data.sources.table_files import data_set_name, find_columns, is_hub_id, load_tables, may_read
from hf_seg.data.spec import DatasetSpec
from hf_seg.problem import DataError, Problem
from hf_seg.text import printable

if TYPE_CHECKING:
    from hf_seg.recipe.keys import DataRecipe

SPLIT_RULE = (
    "the data set's own train, validation and test splits; where it lacks one of the last two, 10 % of train, drawn "
    "at random once and kept in split.json."
)
CHANGED = (
    "Return to the data set that it was made for (data.revision selects one on the Hub), or delete the file; then a "
    "new split is drawn, and scores before and after are from different test sets."
)
OUTSIDE = (
    "A row may name only files in the data set's own folder, by their whole paths: put the files there, or store the "
    "bytes of the pictures in the table."
)
EMPTY = 'Leave such rows out of the data set, or set data.on_bad_pair to "drop".'


def find_hub_root(data: DataRecipe) -> Path:
    """Return the folder of `classes.json` and `split.json`: `data.root`, or the data set's own folder."""
    return find_root(data.root or data.path)


def build_hub_spec(data: DataRecipe) -> DatasetSpec:
    """Build the spec from `classes.json`; the data set itself is not loaded."""
    place, homepage = Path(data.path).expanduser(), None
    title = place.resolve().name or data.path
    if is_hub_id(data.path):
        title, homepage = data.path, f"https://huggingface.co/datasets/{data.path}"
        homepage += f"/tree/{data.revision}" if data.revision else ""
    return build_own_spec(find_hub_root(data), name="hub", title=title, split_rule=SPLIT_RULE, homepage=homepage)


def list_table(data: DataRecipe) -> Listing:
    """List the pairs of a table, each with its `origin`; missing splits are drawn from train, but not saved yet."""
    listing = Listing(place=data_set_name(data.path))
    with listing.going_on():
        root = find_hub_root(data)
        mask = load_classes(root).build_column()
        listing.spec = build_hub_spec(data)
        rows, _ = build_rows(data, load_tables(data.path, data.revision, data.config_name))
        usable, listing.bad_pairs = find_usable(data.path, rows)
        chosen, drawn = _add_held_out(listing.place, root, rows["train"], usable)
        otherwise = "give the data set its own validation and test splits"
        listing.save_split = partial(save_split, root, drawn, otherwise) if drawn else None
        listing.splits = DatasetDict()
        for split in SPLITS:
            dataset = rows[split if split in usable else "train"].select(chosen[split])
            dataset = dataset.cast_column("image", UprightImage(value_range=data.value_range))
            listing.splits[split] = dataset.cast_column("mask", mask)
    return listing


def build_rows(data: DataRecipe, tables: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], tuple[str, str]]:
    """Take the image and the mask column of a data set's splits.

    Returns:
        `tuple`: those of `train`, `validation` and `test` that the data set has, with the columns `image` and `mask`
        (pictures as stored) and `origin`, such as `org/name train[12]`; and the data set's own names of the image and
        the mask column.
    """
    name = data_set_name(data.path)
    splits = {split: tables[own] for split, own in find_splits(name, tables).items()}
    image, mask = find_columns(name, splits["train"].features, data.image_column, data.mask_column)
    rows = {}
    for split, dataset in splits.items():
        if missing := {image, mask} - set(dataset.column_names):
            what = f"its {split} split has no column {', '.join(sorted(missing))}, which train has"
            raise DataError(name, what, "Add it, or leave the split out.")
        dataset = dataset.select_columns([image, mask]).rename_columns({image: "image", mask: "mask"})
        dataset = dataset.cast_column("image", Image()).cast_column("mask", Image())
        rows[split] = dataset.add_column("origin", [f"{name} {split}[{row}]" for row in range(len(dataset))])
    return rows, (image, mask)


def find_usable(path: str, rows: Mapping[str, Dataset]) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """Find the rows that have both an image and a mask; nothing is decoded.

    Returns:
        `tuple`: split → row numbers, without a validation or test split in which no row has a mask, such as a test set
        with secret labels; and what is wrong with the other rows.
    """
    usable, problems = {}, []
    for split, dataset in rows.items():
        (no_image, images), (no_mask, masks) = (_find_files(dataset, column) for column in ("image", "mask"))
        origins = dataset.select_columns("origin")
        if split != "train" and len(dataset) and no_mask.all():
            place = origins[0]["origin"].removesuffix("[0]")
            what = f"none of its {len(dataset):,} rows has a mask"
            problems.append(Problem(code="unpaired", place=place, what=what, remedy=UNLABELLED))
            continue
        for row in np.flatnonzero(no_image | no_mask).tolist():
            what = f"the row has no {'mask' if no_mask[row] else 'image'}"
            problems.append(Problem(code="unpaired", place=origins[row]["origin"], what=what, remedy=EMPTY))
        outside = {}
        for column, files in (("image", images), ("mask", masks)):
            outside |= {row: (column, file) for row, file in files.items() if not may_read(path, file)}
        for row, (column, file) in sorted(outside.items()):
            what = f"the {column} is a file outside the data set, {printable(file)}"
            problems.append(Problem(code="outside-file", place=origins[row]["origin"], what=what, remedy=OUTSIDE))
        usable[split] = np.setdiff1d(np.flatnonzero(~(no_image | no_mask)), list(outside))
    return usable, problems


def _find_files(dataset: Dataset, column: str) -> tuple[np.ndarray, dict[int, str]]:
    """Return for each row whether it has no picture, and row → file of pictures that are files. No picture is read."""
    stored, paths = (compute.struct_field(dataset.data.column(column), part) for part in ("bytes", "path"))
    absent, no_path = stored.is_null().to_numpy(), paths.is_null().to_numpy()
    rows = np.flatnonzero(absent & ~no_path)
    return absent & no_path, dict(zip(rows.tolist(), paths.take(rows).to_pylist(), strict=True))


def describe_content(dataset: Dataset) -> str:
    """Hash the byte sizes of a table's pictures (of files, the names), in order, to 16 hex digits; none is read."""
    digest = hashlib.sha256()
    for column in ("image", "mask"):
        for chunk in dataset.data.column(column).chunks:
            sizes = compute.binary_length(chunk.field("bytes")).fill_null(-1)
            digest.update(sizes.to_numpy(zero_copy_only=False).astype("<i4").tobytes())
            files = chunk.field("path").filter(chunk.field("bytes").is_null()).to_pylist()
            digest.update("".join(f"{Path(file).name}\n" for file in files if file).encode())
    return digest.hexdigest()[:16]


def _add_held_out(
    name: str, root: Path, train: Dataset, usable: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Return the row numbers of all three splits, and the content for `split.json` if a split is drawn now, else None.
    Splits that the data set lacks get rows of train, as in `split.json`, or drawn now."""
    lacking = [split for split in SPLITS if split not in usable]
    saved = load_row_split(root)
    if saved is None and not lacking:
        return dict(usable), None
    state = {"train_rows": len(train), "content": describe_content(train)}
    fault = drawn = None
    if saved is None:
        rows = usable["train"].tolist()
        check_enough(name, len(rows), lacking)
        held_out = draw_split(rows, lacking)
        held_out.pop("train")
        saved, drawn = state | {"held_out": held_out}, state | held_out
    elif list(saved["held_out"]) != lacking:
        wanted = f"{' and '.join(lacking)} must be drawn" if lacking else "nothing must be drawn"
        fault = f"holds {' and '.join(saved['held_out'])}, but for {name} {wanted}"
    elif saved["train_rows"] != len(train):
        fault = f"was made for {saved['train_rows']:,} rows of train, but {name} has {len(train):,}"
    elif saved["content"] != state["content"]:
        fault = f"was made for other pictures than {name} now has in train"
    if fault:
        raise DataError(root / FILE_NAME, fault, CHANGED, code="split")
    held_out = {split: np.intersect1d(rows, usable["train"]) for split, rows in saved["held_out"].items()}
    out = np.concatenate(list(held_out.values()))
    return {**usable, "train": np.setdiff1d(usable["train"], out), **held_out}, drawn
