"""A person's own folder of photographs and masks: which files are pairs, and which pairs belong to which split."""

from __future__ import annotations

import functools
import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, Features, Image

from hf_seg.data.classes import load_classes
from hf_seg.data.columns import ClassMask, UprightImage
from hf_seg.data.file_search import RENAME, find_files, is_utf8
from hf_seg.data.sources.layouts import ALL, IMAGE_SUFFIXES, MASK_SUFFIXES, count_endings, find_ending, find_layout
from hf_seg.data.sources.split import (
    SPLIT_WORDS,
    SPLITS,
    UNLABELLED,
    draw_split,
    join_names,
    lists_all,
    load_split,
    save_split,
)
from hf_seg.data.spec import IGNORE_INDEX, DatasetSpec, build_label_table, report_pairs
from hf_seg.problem import DataError, PairError, listing
from hf_seg.text import printable

logger = logging.getLogger(__name__)

KINDS = f"Images may be {', '.join(sorted(IMAGE_SUFFIXES))}; masks {', '.join(sorted(MASK_SUFFIXES))}."
ONE_TO_ONE = (
    f"Each image needs one mask, and each mask one image, of the same name without the suffix. {KINDS} All masks may "
    "have one ending more than their images, such as _mask."
)

Pair = tuple[Path, Path]


@dataclass(kw_only=True)
class Listing:
    """The pairs of a folder, before any split is drawn.

    Args:
        splits (`dict[str, dict[str, Pair]]`): each split that has a folder → name → (image, mask), sorted; or `ALL`
            alone.
        errors (`list[PairError]`): the files that are no pair.
        bad (`set[str]`): the names of those that are not in a validation or test folder.
        notes (`list[str]`): what a person should know of it.
    """

    splits: dict[str, dict[str, Pair]]
    errors: list[PairError] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def lacking(self) -> list[str]:
        """The splits that must be drawn."""
        return [split for split in SPLITS[1:] if split not in self.splits]


def find_root(root: str) -> Path:
    """The folder of `data.root`.

    Raises:
        DataError: when it does not exist, or its name cannot be written into a table.
    """
    folder = Path(root).expanduser()
    if not is_utf8(folder):
        raise DataError(f"{printable(str(folder))}: the name is not UTF-8. {RENAME}")
    if not folder.is_dir():
        raise DataError(f"data.root: there is no folder {folder.absolute()}. Correct the path.")
    return folder


def build_spec(root: Path) -> DatasetSpec:
    """What the masks of a folder mean.

    Raises:
        DataError: when the layout is unknown, or `classes.json` is absent or not in order.
    """
    layout = find_layout(root)
    rule = "80 % train, 10 % validation, 10 % test, drawn at random once and kept in split.json."
    if ALL not in layout:
        rule = f"the folders {join_names(layout)}."
        if lacking := [split for split in SPLITS if split not in layout]:
            rule = (
                f"{rule[:-1]}; for {join_names(lacking)}, 10 % of train, drawn at random once and kept in split.json."
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


def list_folder(root: Path) -> Listing:
    """List the pairs of a folder; nothing is written, and no split is drawn.

    Raises:
        DataError: as [`find_layout`].
    """
    found = Listing(splits={})
    for split, (images, masks) in find_layout(root).items():
        pairs, errors, bad = find_pairs(images, masks)
        count = len(bad)
        if split in SPLITS[1:] and errors and not _files(masks, MASK_SUFFIXES)[0]:
            errors = [PairError(str(images), f"none of its {count} images has a mask", UNLABELLED)]
        else:
            found.splits[split] = pairs
        found.errors += errors
        found.bad |= bad if split in (ALL, "train") else set()
    if ALL in found.splits:
        found.notes += _moved(root)
    return found


def _moved(root: Path) -> list[str]:
    """Names of folders in images/ that split.json does not follow."""
    saved = load_split(root) if lists_all(root) else None
    moved = [
        f"{name} ({split})"
        for split, names in (saved or {}).items()
        for name in names
        if SPLIT_WORDS.get(name.partition("/")[0].lower(), split) != split
    ]
    if not moved:
        return []
    what = f"{len(moved)} pairs are in another split than their folder says, such as {printable(moved[0])}"
    return [f"{root / 'split.json'}: {what}. Delete the file if the folders are right."]


def divide(root: Path, found: Listing) -> tuple[dict[str, list[Pair]], dict[str, list[str]] | None]:
    """Give each pair of a listing to a split: as the folders say, then as `split.json` says, else at random.

    Args:
        root (`Path`): the folder, for `split.json`, which is read where a split has no folder.
        found ([`Listing`]): from [`list_folder`].

    Returns:
        `tuple`: `train`, `validation` and `test` → (image, mask) files; and what `save_split` must keep, or None.

    Raises:
        DataError: when there are too few pairs to draw from, or `split.json` is not in order or names what is gone.
    """
    own = {split: list(pairs.values()) for split, pairs in found.splits.items()}
    if not found.lacking:
        return own, None
    wanted = SPLITS if ALL in own else found.lacking
    source = found.splits[ALL if ALL in own else "train"]
    drawn, lists = None, load_split(root, wanted)
    if lists is None:
        if len(source) <= len(found.lacking):
            raise DataError(
                f"{root}: {len(source)} pairs cannot be split into {join_names(('train', *found.lacking))}: it takes "
                f"{len(found.lacking) + 1}."
            )
        lists = draw_split(sorted(source), found.lacking)
        drawn = {split: lists[split] for split in wanted}
    known = {name for part in lists.values() for name in part}
    gone = sorted(known - source.keys() - found.bad)
    if gone:
        raise DataError(
            f"{root / 'split.json'}: {len(gone)} names in it have no files any more:\n{listing(gone)}\n"
            "Put the files back, or delete these lines. (Deleting the whole file draws a new split, and scores before "
            "and after are then of different test sets.)"
        )
    new = source.keys() - known
    if new:
        if "train" in wanted:
            found.notes.append(f"{root}: {len(new)} new pairs count as train, since split.json does not name them.")
        lists["train"] = sorted([*lists.get("train", []), *new])
    drawn_pairs = {split: [source[name] for name in names if name in source] for split, names in lists.items()}
    return {split: (own | drawn_pairs)[split] for split in SPLITS}, drawn


def list_pairs(root: Path, *, drop: bool) -> tuple[dict[str, list[Pair]], list[PairError]]:
    """List the (image, mask) files of each split; draws a split that has no folder, and saves it, the first time.

    Args:
        root (`Path`): a folder in one of the layouts of docs/data.md.
        drop (`bool`): leave out files that are no pair, instead of raising.

    Returns:
        `tuple`: split name → pairs, sorted by name; and the files that are no pair.

    Raises:
        DataError: when the layout is unknown, a file is no part of a pair, there are too few pairs to split, or
            `split.json` cannot be read, written, or names what is not there.
    """
    found = list_folder(root)
    if found.errors and not drop:  # before a split is drawn, and kept for ever, of what is only a part
        count = sum(map(len, found.splits.values())) + len(found.errors)
        raise report_pairs(str(root), found.errors, count)
    pairs, drawn = divide(root, found)
    if drawn is not None:
        save_split(root, drawn)
    for note in found.notes:
        _warn(note)
    return pairs, found.errors


@functools.cache  # once a process, though a launch loads its data several times
def _warn(note: str) -> None:
    logger.warning("%s", note)


def find_pairs(images_folder: Path, masks_folder: Path) -> tuple[dict[str, Pair], list[PairError], set[str]]:
    """Match the files of two folders by their path without suffix, in Unicode's form NFC.

    Masks may all have one ending more than their images, such as `_mask`.

    Returns:
        `tuple`: name → (image, mask), sorted; what is wrong with files that have no partner, or more than one; and the
        names of these.
    """
    images, errors, bad = _files(images_folder, IMAGE_SUFFIXES)
    masks, more, bad_masks = _files(masks_folder, MASK_SUFFIXES)
    endings = count_endings(images, masks)
    if ending := find_ending(images, masks):
        masks = {name.removesuffix(ending): path for name, path in masks.items()}
        bad_masks = {name.removesuffix(ending) for name in bad_masks}
    errors, bad = errors + more, bad | bad_masks
    for name in sorted((images.keys() ^ masks.keys()) - bad):
        reason = "the image has no mask" if name in images else "the mask has no image"
        if not ending and name in masks:
            reason += next((f' (there is one without "{end}")' for end in endings if name.endswith(end)), "")
        errors.append(PairError(str(images.get(name) or masks[name]), reason, ONE_TO_ONE))
    bad |= images.keys() ^ masks.keys()
    return {name: (images[name], masks[name]) for name in sorted((images.keys() & masks.keys()) - bad)}, errors, bad


def as_dataset(pairs: Sequence[Pair]) -> Dataset:
    """A table of files, with masks as stored: what they mean need not be known yet.

    Args:
        pairs (`Sequence[tuple[Path, Path]]`): (image, mask) files.

    Returns:
        [`Dataset`]: columns `image` and `mask`.
    """
    columns = {"image": [str(image) for image, _ in pairs], "mask": [str(mask) for _, mask in pairs]}
    return Dataset.from_dict(columns, features=Features({"image": UprightImage(), "mask": Image()}))


def _files(folder: Path, suffixes: set[str]) -> tuple[dict[str, Path], list[PairError], set[str]]:
    """Files by their path below `folder` without suffix; what is twice there or cannot be used; the names of that."""
    found: dict[str, Path] = {}
    errors, bad = [], set()
    if not folder.is_dir():  # of a validation or test split without masks
        return found, errors, bad

    def name_of(path: Path) -> str:
        below = path.relative_to(folder)
        return unicodedata.normalize("NFC", (below.parent / below.stem).as_posix())

    files, obstacles = find_files(folder)
    for obstacle in obstacles:
        errors.append(PairError(printable(str(obstacle.path)), obstacle.reason, obstacle.remedy))
        bad.add(name_of(obstacle.path))
    for path in files:
        name, suffix = name_of(path), path.suffix.lower()
        if suffix in suffixes:
            if name in found:
                errors.append(PairError(str(path), f"there is {found[name].name} beside it", ONE_TO_ONE))
                bad.add(name)
            found[name] = path
        elif suffix in IMAGE_SUFFIXES:  # of a mask
            reason = f"the mask is a {path.suffix} file, whose compression alters ids and colours"
            errors.append(PairError(str(path), reason, KINDS))
            bad.add(name)
    return found, errors, bad
