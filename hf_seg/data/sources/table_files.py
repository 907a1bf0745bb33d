"""Load data sets from the Hugging Face Hub or a folder, as memory-mapped tables, and find their columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    DatasetBuilder,
    DatasetDict,
    Features,
    Image,
    List,
    Value,
    config,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import DatasetCard, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from pyarrow import ArrowInvalid, parquet

from hf_seg.data.file_search import find_files
from hf_seg.data.sources.class_names import find_nameless, read_names
from hf_seg.data.sources.split import SPLIT_WORDS
from hf_seg.problem import DataError, Problem, disk_remedy
from hf_seg.recipe.rules import is_path_or_hub_id

# names of such columns in published data sets, in lower case
IMAGE_NAMES = {"image", "images", "pixel_values", "img", "photo", "photograph", "picture", "rgb", "input"}
MASK_NAMES = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "segmentation", "segmentation_mask"),
    *("semantic_segmentation", "semantic_mask", "seg", "gt", "ground_truth", "target", "label_map"),
}
PICTURES = (
    "Images and masks must be columns of pictures: datasets.Image, a struct with bytes, or bytes. Convert arrays and "
    "lists of ids to pictures with map and PIL.Image.fromarray."
)
SAVED = ("dataset_dict.json", "state.json")  # one of these is in every folder that save_to_disk has written
LAYOUT = (
    "A folder holds Parquet files, with train, validation or test in their names or their folders' names, or the "
    "output of save_to_disk."
)
NOT_FOUND = (
    "Correct data.path and data.revision; for a private or gated data set, ask for access on its page and log in with "
    "`hf auth login`."
)
NOT_REACHED = (
    "Check the connection and HF_HUB_OFFLINE. Without a connection, data.path may be a folder that holds the data "
    "set's files."
)
DAMAGED = "Get the data set's files again; `datasets.load_dataset` must be able to read them."


def data_set_name(path: str) -> str:
    """Return a data set's name in messages: a Hub id unchanged, a folder as its absolute path."""
    place = Path(path).expanduser()
    return str(place.absolute()) if place.exists() else path


def is_hub_id(path: str) -> bool:
    """Whether a path does not exist on this machine and has the form `org/name`."""
    return not Path(path).expanduser().exists() and is_path_or_hub_id(path)


def may_read(path: str, file: str) -> bool:
    """Whether a file that a table or a configuration names belongs to the data set: with links and `..` resolved, it
    is in the data set's folder or, for a data set of the Hub, in one of the folders where its files are cached."""
    places = [Path(path).expanduser()]
    if is_hub_id(path):
        repository = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="dataset")
        places = [repository, Path(config.DOWNLOADED_DATASETS_PATH)]
    return any(Path(file).resolve().is_relative_to(place.resolve()) for place in places)


def is_table_folder(folder: Path) -> bool:
    """Whether a folder holds Parquet files or what `save_to_disk` has written."""
    return any((folder / name).is_file() for name in SAVED) or bool(_parquet_files(folder)[0])


def load_tables(path: str, revision: str | None, config_name: str | None) -> Mapping[str, Dataset]:
    """Load all splits of a data set; the keys are its own names. No code of the data set is run.

    Args:
        path (`str`): a folder or a Hub id. All arguments are as in a recipe.

    Raises:
        DataError: when it does not exist, cannot be reached, or cannot be read.
    """
    place = Path(path).expanduser()
    if not place.exists():
        return _load_from_hub(path, revision, config_name)
    if not place.is_dir():
        raise DataError(place.absolute(), "is a file", f"data.path must name a folder. {LAYOUT}")
    with _explained(data_set_name(path)):
        if any((place / name).is_file() for name in SAVED):
            if config_name:
                what = "was written by save_to_disk and has no configurations"
                raise DataError(place, what, "leave data.config_name out")
            loaded = load_from_disk(str(place))
            return loaded if isinstance(loaded, DatasetDict) else {"train": loaded}
        readme = place / "README.md"
        if readme.is_file() and DatasetCard.load(readme, ignore_metadata_errors=True).data.get("configs"):
            builder = load_dataset_builder(str(place), config_name)
            _refuse_outside(data_set_name(path), builder, lambda file: may_read(path, file))
        else:
            if config_name:
                remedy = "leave data.config_name out, or name the folder of that configuration in data.path"
                raise DataError(place, "has no README.md that names configurations", remedy)
            # Not the folder itself: `datasets` would take classes.json and the runs in it as data files, too.
            builder = load_dataset_builder("parquet", data_files=_by_split(place))
        builder.download_and_prepare()
        return builder.as_dataset()


@cache  # a launch loads its data several times and must get the same commit each time
def _load_from_hub(path: str, revision: str | None, config_name: str | None) -> DatasetDict:
    with _explained(path if revision is None else f"{path} at {revision}"):
        builder = load_dataset_builder(path, config_name, revision=revision)
        # Offline, `datasets` falls back to its cache, even if that is another revision.
        if isinstance(builder, Cache) and revision not in (None, "main", builder.hash):
            what = f"the Hub cannot be reached, and the commit in the cache is {builder.hash}"
            raise DataError(f"{path} at {revision}", what, f"{NOT_REACHED} Or set data.revision to that commit.")
        _refuse_outside(path, builder, lambda file: file.startswith("hf://datasets/"))
        builder.download_and_prepare()
        return builder.as_dataset()


def _refuse_outside(name: str, builder: DatasetBuilder, belongs: Callable[[str], bool]) -> None:
    """Raise a DataError for data files outside of the data set: a README.md could name any file of this machine."""
    files = [file for listed in (builder.config.data_files or {}).values() for file in listed]
    if outside := [file for file in files if not belongs(file)]:
        what = "is outside the data set"
        remedy = "Do not use it; or, if you trust it, put the files into its folder, and name them there."
        problems = [Problem(code="outside-file", place=file, what=what, remedy=remedy) for file in outside]
        raise DataError(problems=problems, heading=f"{name}: its README.md names data outside the data set:")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn any exception that `datasets` raises while loading a data set into a DataError with a remedy."""
    try:
        yield
    except DataError:
        raise
    except DatasetNotFoundError as error:
        raise DataError(name, _first_line(error).rstrip("."), NOT_FOUND) from error
    except ConnectionError as error:
        raise DataError(name, f"the Hub cannot be reached ({_first_line(error)})", NOT_REACHED) from error
    except Exception as error:  # those of Arrow, datasets and the Hub's client, ValueError for a configuration, …
        cause = error.__cause__ or error
        what = f"cannot be loaded ({type(cause).__name__}: {_first_line(cause)})"
        raise DataError(name, what, disk_remedy(cause) or DAMAGED) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or "no reason given"


def _parquet_files(folder: Path) -> tuple[list[Path], list[Problem]]:
    files, obstacles = find_files(folder)
    return [path for path in files if path.suffix == ".parquet"], obstacles


def _by_split(folder: Path) -> dict[str, list[str]]:
    """Find the Parquet files of each split, by the word in a file's name, else in the innermost folder with one."""
    files, obstacles = _parquet_files(folder)
    if obstacles:
        raise DataError(problems=obstacles, heading=f"{folder}: not all of it can be searched:")
    if not files:
        raise DataError(folder.absolute(), "holds no Parquet file", LAYOUT)
    splits: dict[str, list[str]] = {}
    unnamed, first = [], []
    for file in files:
        try:  # here, because datasets would not say which file is damaged
            columns = parquet.read_schema(file).names
        except (ArrowInvalid, OSError) as error:
            raise DataError(file, f"is not a complete Parquet file ({_first_line(error)})", "Get it again.") from error
        first = first or columns
        if set(columns) != set(first):
            what = f"its columns are {', '.join(columns)}, but those of {files[0].name} are {', '.join(first)}"
            raise DataError(file, what, "All files of a data set must have the same columns.")
        for part in reversed(file.relative_to(folder).with_suffix("").parts):
            found = {SPLIT_WORDS[word] for word in re.split("[^a-z]+", part.lower()) if word in SPLIT_WORDS}
            if len(found) == 1:
                splits.setdefault(found.pop(), []).append(str(file))
                break
        else:
            unnamed.append(str(file))
    if splits and unnamed:
        what = "neither its name nor its folders' names contain a split"
        raise DataError(unnamed[0], what, f"{LAYOUT} Move it or rename it.")
    return splits or {"train": unnamed}


def load_class_names(
    path: str, revision: str | None, features: Features, ids: Collection[int], by_color: bool
) -> tuple[dict[int, str], str]:
    """Return the data set's own names for the ids in its masks, and their place; empty if it has none, or for colours.

    They are in `id2label.json`, or in a column with a list of `ClassLabel` per row, which is used if it is the only
    one with as many names as the ids need (the largest id + 1). One `ClassLabel` per row names the whole image.
    """
    if by_color:
        return {}, ""
    place = Path(path).expanduser()
    file: Path | None = place / "id2label.json"
    if not place.exists():
        with _explained(path):
            try:
                file = Path(hf_hub_download(path, file.name, repo_type="dataset", revision=revision))
            except EntryNotFoundError:
                file = None
    if file and file.is_file():
        names = read_names(file)[0]
        nameless = find_nameless(ids, names, by_color)
        return ({}, f"not from {file.name}, which has no name for {nameless}") if nameless else (names, file.name)
    count = 1 + max(set(ids) - {255, 65_535}, default=-1)  # without void
    labels = {column: _class_label(feature) for column, feature in features.items()}
    labels = {column: label for column, label in labels.items() if label and len(label.names) == count}
    if len(labels) != 1:
        return {}, ""
    [(column, label)] = labels.items()
    return dict(enumerate(label.names)), f"the column {column}"


def _class_label(feature: object) -> ClassLabel | None:
    inner = feature
    while isinstance(inner, List):
        inner = inner.feature
    return inner if isinstance(inner, ClassLabel) and inner is not feature else None


def find_columns(name: str, features: Features, image: str | None, mask: str | None) -> tuple[str, str]:
    """Find the names of the image and the mask column.

    Args:
        name (`str`): the data set's name, for messages.
        image (`str`, *optional*), mask (`str`, *optional*): the names that a recipe gives. None: the only column of
            pictures with a usual name, else the only column of pictures that is left.

    Raises:
        DataError: when a column is not there or holds no pictures, or when more than one could be meant.
    """
    pictures = [column for column, feature in features.items() if holds_pictures(feature)]
    columns = {"image_column": image, "mask_column": mask}
    for key, given in columns.items():
        if given is not None and given not in features:
            raise DataError(name, f'has no column "{given}" (data.{key})', _listed(features))
        if given is not None and given not in pictures:
            what = f'the column "{given}" (data.{key}) holds no pictures'
            raise DataError(name, what, f"{_listed(features)} {PICTURES}")
    for key, names in (("image_column", IMAGE_NAMES), ("mask_column", MASK_NAMES)):
        usual = [column for column in pictures if column.lower() in names and column not in columns.values()]
        if columns[key] is None and len(usual) == 1:
            columns[key] = usual[0]
    for key, found in columns.items():
        left = [column for column in pictures if column not in columns.values()]
        if found is None and len(left) == 1 and any(columns.values()):  # several are left: do not guess
            columns[key] = left[0]
    for key, found in columns.items():
        if found is None:
            remedy = (
                f"Set data.{key} (in `hf-seg init`: --{key.replace('_', '-')})." if len(pictures) > 1 else PICTURES
            )
            what = f"the {key.replace('_', ' ')} cannot be determined"
            raise DataError(name, what, f"{_listed(features)} {remedy}")
    return columns["image_column"], columns["mask_column"]


def holds_pictures(feature: Any) -> bool:
    """Whether a column's type is one that `datasets.Image` can decode: itself, a struct with bytes, or bytes."""
    if isinstance(feature, Mapping):
        return "bytes" in feature and feature.keys() <= {"bytes", "path"}
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"))


def _listed(features: Features) -> str:
    columns = []
    for column, feature in features.items():
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        if isinstance(feature, Mapping):
            kind = f"struct of {', '.join(feature)}"
        columns.append(f"{column} ({kind})")
    return f"Its columns: {', '.join(columns)}."
