"""A person's own folder of photographs and masks: which files are pairs, and which pairs belong to which split."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

from datasets import Dataset, Features, Image

from hf_seg.data.classes import load_classes
from hf_seg.data.own_images import ClassMask, UprightImage
from hf_seg.data.spec import IGNORE_INDEX, DataError, DatasetSpec, PairError, build_label_table, listing, report_pairs
from hf_seg.data.split_file import draw_split, load_split, save_split

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MASK_SUFFIXES = {".png", ".bmp", ".tif", ".tiff", ".gif"}
SPLITS = ("train", "validation", "test")
PARTS = ("images", "masks")
LAYOUTS = (
    "A folder of pictures holds images/ and masks/, or train/, validation/ and test/ with images/ and masks/ each."
)
KINDS = f"Images may be {', '.join(sorted(IMAGE_SUFFIXES))}; masks {', '.join(sorted(MASK_SUFFIXES))}."
ONE_TO_ONE = f"Each image needs one mask, and each mask one image, of the same name without the suffix. {KINDS}"

Pair = tuple[Path, Path]


def find_root(root: str) -> Path:
    """The folder of `data.root`.

    Raises:
        DataError: when it does not exist.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"data.root: there is no folder {folder.absolute()}. Correct the path.")
    return folder


def build_spec(root: Path) -> DatasetSpec:
    """What the masks of a folder mean.

    Raises:
        DataError: when `classes.json` is absent or not in order.
    """
    rule = (
        "the folders train, validation and test."
        if has_split_folders(root)
        else "80 % train, 10 % validation, 10 % test, drawn at random once and kept in split.json."
    )
    return build_own_spec(root, name="folder", title=root.resolve().name or "folder", split_rule=rule)


def build_own_spec(root: Path, *, name: str, title: str, split_rule: str, homepage: str | None = None) -> DatasetSpec:
    """What `root/classes.json` says: masks are decoded to class ids, so the label table leaves these as they are.

    Raises:
        DataError: when `classes.json` is absent or not in order.
    """
    classes = load_classes(root)
    return DatasetSpec(
        name=name,
        class_names=classes.names,
        palette=classes.palette,
        label_table=build_label_table({index: index for index in (*range(len(classes.names)), IGNORE_INDEX)}),
        title=title,
        homepage=homepage,
        split_rule=split_rule,
    )


def build_mask_column(root: Path) -> ClassMask:
    """The column that decodes the masks of a folder to class ids.

    Raises:
        DataError: as [`build_spec`].
    """
    classes = load_classes(root)
    values, labels = list(classes.meaning), list(classes.meaning.values())
    return ClassMask(by_color=classes.by_color, values=values, labels=labels)


def has_split_folders(root: Path) -> bool:
    """Which of the two layouts a folder has.

    Raises:
        DataError: when it has neither, or a bit of both.
    """
    plain = [part for part in PARTS if (root / part).is_dir()]
    split = [name for name in SPLITS if (root / name).is_dir()]
    if plain == list(PARTS) and not split:
        return False
    wanted = [f"{name}/{part}" for name in SPLITS for part in PARTS]
    missing = [place for place in wanted if not (root / place).is_dir()]
    if not missing and not plain:
        return True
    if plain and split:
        raise DataError(f"{root}: holds both {', '.join([*plain, *split])}: leave one of the layouts. {LAYOUTS}")
    if plain:
        missing = [part for part in PARTS if part not in plain]
    elif not split:
        missing = ["images", "masks"]
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders = f"its folders are {', '.join(found[:10])}" if found else "it holds no folder"
    raise DataError(f"{root}: has no {', no '.join(missing)}; {folders}. {LAYOUTS}")


def list_pairs(root: Path, *, drop: bool) -> tuple[dict[str, list[Pair]], list[PairError]]:
    """List the (image, mask) files of each split; draws the split, and saves it, where there is none yet.

    Args:
        root (`Path`): a folder in one of the two layouts, see docs/data.md.
        drop (`bool`): leave out files that are no pair, instead of raising.

    Returns:
        `tuple`: split name → pairs, sorted by name; and the files that are no pair.

    Raises:
        DataError: when the layout is neither of the two, a file is no part of a pair, there are fewer than three
            pairs to split, or `split.json` cannot be read, written, or names what is not there.
    """
    if has_split_folders(root):
        pairs, errors = {}, []
        for split in SPLITS:
            found, wrong = find_pairs(root / split)
            pairs[split] = list(found.values())
            errors += wrong
        _refuse(root, errors, pairs.values(), drop)
        return pairs, errors
    found, errors = find_pairs(root)
    _refuse(root, errors, [found], drop)  # before a split is drawn, and kept for ever, of what is only a part
    names = _split(root, sorted(found), {_stem(root, error.file) for error in errors})
    return {split: [found[name] for name in listed if name in found] for split, listed in names.items()}, errors


def _refuse(root: Path, errors: list[PairError], pairs: Iterable[Sized], drop: bool) -> None:
    if errors and not drop:
        raise report_pairs(str(root), errors, sum(map(len, pairs)) + len(errors))


def find_pairs(folder: Path) -> tuple[dict[str, Pair], list[PairError]]:
    """Match the files in `folder/images` and `folder/masks` by their path without suffix.

    Returns:
        `tuple`: name → (image, mask), sorted; and the files that have no partner, or more than one.
    """
    (images, errors), (masks, more) = (
        _files(folder / part, suffixes) for part, suffixes in zip(PARTS, (IMAGE_SUFFIXES, MASK_SUFFIXES), strict=True)
    )
    errors += more
    known_bad = {_stem(folder, error.file) for error in errors}
    for name in sorted((images.keys() ^ masks.keys()) - known_bad):
        reason = "the image has no mask" if name in images else "the mask has no image"
        errors.append(PairError(str(images.get(name) or masks[name]), reason, ONE_TO_ONE))
    names = sorted((images.keys() & masks.keys()) - known_bad)
    return {name: (images[name], masks[name]) for name in names}, errors


def as_dataset(pairs: Sequence[Pair]) -> Dataset:
    """A table of files, with masks as stored: what they mean need not be known yet.

    Args:
        pairs (`Sequence[tuple[Path, Path]]`): (image, mask) files.

    Returns:
        [`Dataset`]: columns `image` and `mask`.
    """
    columns = {"image": [str(image) for image, _ in pairs], "mask": [str(mask) for _, mask in pairs]}
    return Dataset.from_dict(columns, features=Features({"image": UprightImage(), "mask": Image()}))


def _files(folder: Path, suffixes: set[str]) -> tuple[dict[str, Path], list[PairError]]:
    """Files by their path below `folder` without suffix; what is twice there or of another kind."""
    found: dict[str, Path] = {}
    errors = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(place, name) for name in sorted(names) if not name.startswith(".")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if path.suffix.lower() not in suffixes:
                if path.suffix.lower() in IMAGE_SUFFIXES:  # of a mask
                    reason = f"the mask is a {path.suffix} file, whose compression alters ids and colours"
                    errors.append(PairError(str(path), reason, KINDS))
                continue
            if name in found:
                errors.append(PairError(str(path), f"there is {found[name].name} beside it", ONE_TO_ONE))
            found[name] = path
    return found, errors


def _stem(folder: Path, file: str) -> str:
    """The name under which a file below `folder/images` or `folder/masks` is matched."""
    below = Path(file).relative_to(folder)
    return Path(*below.parts[1:]).with_suffix("").as_posix()


def _split(root: Path, names: list[str], bad: set[str]) -> dict[str, list[str]]:
    """The splits in `split.json`: drawn when it is not there; what is new in the folder is added to train."""
    saved = load_split(root)
    if saved is None:
        if len(names) < 3:
            raise DataError(f"{root}: {len(names)} pairs cannot be split into train, validation and test: it takes 3.")
        split = draw_split(names, SPLITS[1:])
        save_split(root, split)
        return split
    listed = {name for part in saved.values() for name in part}
    gone = sorted(listed - set(names) - bad)
    if gone:
        raise DataError(
            f"{root / 'split.json'}: {len(gone)} names in it have no files any more:\n{listing(gone)}\n"
            "Put the files back, or delete these lines. (Deleting the whole file draws a new split, and scores before "
            "and after are then of different test sets.)"
        )
    new = sorted(set(names) - listed)
    if new:
        saved["train"] = sorted([*saved["train"], *new])
        save_split(root, saved)
        logger.warning("%s: %d new pairs were added to train in split.json; the test set stays.", root, len(new))
    return saved
