"""Your own folder of photographs and masks: which files are pairs, and which pairs belong to which split."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

from datasets import Dataset, DatasetDict, Features, Image

from hf_seg.data.classes import load_classes
from hf_seg.data.columns import ClassMask, StoredImage, UprightImage
from hf_seg.data.file_search import IMAGE_SUFFIXES, RENAME, find_files, is_utf8
from hf_seg.data.pairs import ALL, Listing
from hf_seg.data.sources import polygons
from hf_seg.data.sources.layouts import MASK_SUFFIXES, PREVIEW, Layout, Part, ending_beside, find_layout
from hf_seg.data.sources.split import (
    FILE_NAME,
    SPLIT_WORDS,
    SPLITS,
    UNLABELLED,
    check_enough,
    draw_split,
    join_names,
    lists_all,
    load_split,
    save_split,
)
from hf_seg.data.spec import IGNORE_INDEX, DatasetSpec, build_label_table
from hf_seg.problem import DataError, Level, Problem
from hf_seg.recipe.keys import DataRecipe
from hf_seg.text import printable

KINDS = f"Images may be {', '.join(sorted(IMAGE_SUFFIXES))}; masks {', '.join(sorted(MASK_SUFFIXES))}."
ONE_TO_ONE = (
    f"Each image needs one mask, and each mask one image, with the same name without the suffix. {KINDS} All masks "
    "may have one more ending than their images, such as _mask. For others: `hf-seg init` with --images and --masks."
)
UNUSED_LIST = (
    "Lists are used if one is for train, and they are beside the folders of images and masks. Paths in them begin at "
    "that folder."
)

Pair = tuple[Path, Path]


@dataclass(kw_only=True)
class Found:
    """The pairs of a folder, before any split is drawn."""

    layout: Layout
    # each split that has a folder, or only `ALL` → name → (image, mask), sorted
    splits: dict[str, dict[str, Pair]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)  # the files that are not a pair
    bad: set[str] = field(default_factory=set)  # their names, without those in validation or test folders
    notes: list[Problem] = field(default_factory=list)  # warnings

    @property
    def lacking(self) -> list[str]:
        """The splits that must be drawn."""
        return [split for split in SPLITS[1:] if split not in self.splits]


def find_root(root: str) -> Path:
    """Return the folder of `data.root`; it must exist, with a name that is UTF-8, so that tables can store it."""
    folder = Path(root).expanduser()
    if not is_utf8(folder):
        raise DataError(folder, "the name is not UTF-8", RENAME)
    if not folder.is_dir():
        raise DataError("data.root", f"there is no folder {folder.absolute()}", "Correct the path.")
    return folder


def build_spec(root: Path, layout: Layout) -> DatasetSpec:
    """Build the spec of a folder from its layout and its `classes.json`, which must be valid."""
    parts = layout.parts
    drawn = "drawn at random once and kept in split.json"
    rule = f"80 % train, 10 % validation, 10 % test, {drawn}."
    if ALL not in parts:
        lacking = [split for split in SPLITS if split not in parts]
        rule = f"the {'lists' if parts['train'].source else 'folders'} {join_names(parts)}"
        rule += f"; for {join_names(lacking)}, 10 % of train, {drawn}." if lacking else "."
    return build_own_spec(root, name="folder", title=root.resolve().name or "folder", split_rule=rule)


def build_own_spec(root: Path, *, name: str, title: str, split_rule: str, homepage: str | None = None) -> DatasetSpec:
    """Build the spec from `root/classes.json`; masks decode to class ids, so the label table does not change them."""
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


def list_folder(data: DataRecipe) -> Listing:
    """List the pairs of `data.root`; a split without a folder is drawn, but not saved yet."""
    listing = Listing(place=data.root)
    with listing.going_on():
        root = find_root(data.root)
        listing.place = str(root)
        found = find_pairs(root, data.layout)
        listing.layout = str(found.layout)
        listing.bad_pairs, listing.notes = found.problems, found.notes
        mask: StoredImage | ClassMask = StoredImage(mode="L")  # in case classes.json is invalid
        with listing.going_on():
            listing.spec, mask = build_spec(root, found.layout), load_classes(root).build_column()
        splits = {ALL: [pair for pairs in found.splits.values() for pair in pairs.values()]}
        with listing.going_on():
            splits, drawn = divide(root, found)
            otherwise = "sort the pairs into train/, validation/ and test/"
            listing.save_split = partial(save_split, root, drawn, otherwise) if drawn else None
        listing.splits = DatasetDict(
            {split: build_table(pairs, mask, data.value_range) for split, pairs in splits.items()}
        )
    return listing


def build_table(pairs: Sequence[Pair], mask: Image, value_range: list[float] | None = None) -> Dataset:
    """Build a table of files with the columns `image`, upright, and `mask`, which the given column type decodes."""
    features = Features({"image": UprightImage(value_range=value_range), "mask": mask})
    return Dataset.from_dict(as_columns(pairs), features=features)


def as_columns(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    return {"image": [str(image) for image, _ in pairs], "mask": [str(mask) for _, mask in pairs]}


def find_pairs(root: Path, chosen: str | None = None) -> Found:
    """Find the pairs of a folder, in its only layout or in the chosen one; no split is drawn."""
    found = Found(layout=find_layout(root, chosen))
    parts = found.layout.parts
    for split, part in parts.items():
        pairs, problems, bad, any_mask = match_files(part)
        if split in SPLITS[1:] and problems and not any_mask:
            what = f"none of its {len(bad)} images has a mask"
            place = str(part.source or part.images)
            problems = [Problem(code="unpaired", place=place, what=what, remedy=UNLABELLED)]
        else:
            found.splits[split] = pairs
        found.problems += problems
        found.bad |= bad if split in (ALL, "train") else set()
        if part.source:  # a picture in two lists would be used for training and testing
            for other in found.splits.keys() - {split}:
                if both := sorted(found.splits[other].keys() & pairs.keys()):
                    what = f"names {both[0]}, which another list assigns to {other}; {len(both)} pictures in all"
                    raise DataError(part.source, what, "Remove them from one list.", code="split")
    found.notes += _find_notes(root, found)
    return found


def _find_notes(root: Path, found: Found) -> Iterator[Problem]:
    """Say which pairs, lists, folder names and annotations are not used, although the user may expect it."""
    parts = found.layout.parts.values()
    if part := next((part for part in parts if not part.deep or part.listed is not None), None):
        everything = match_files(replace(part, listed=None, deep=True))[0]
        if left := sorted(everything.keys() - {name for pairs in found.splits.values() for name in pairs}):
            where, remedy = "in no list", ""
            if part.listed is None:
                where, remedy = "in folders below", "To use them, too, name the files with --images and --masks."
            what = f"{len(left)} pairs are {where}, such as {left[0]}, and are left out"
            yield Problem(level="note", code="split", place=str(root), what=what, remedy=remedy)
    if ALL in found.splits and lists_all(root):
        moved = [
            f"{name} ({split})"
            for split, names in load_split(root).items()
            for name in names
            if SPLIT_WORDS.get(name.partition("/")[0].lower(), split) != split
        ]
        if moved:
            what = f"{len(moved)} pairs are in a different split than their folder says, such as {moved[0]}"
            yield _split_note(root, what, "Delete the file if the folders are right.")
    elif ALL in found.splits:
        files = find_files(root, tuple(f"{word}.txt" for word in SPLIT_WORDS))[0]
        unused = [file for file in files if file.stem in SPLIT_WORDS and file not in {part.source for part in parts}]
        if unused:
            what = "looks like the list of a split, but is not used: the split is drawn at random"
            yield Problem(level="warning", code="split", place=str(unused[0]), what=what, remedy=UNUSED_LIST)
    if changed := polygons.find_changes(root):
        what = f"{len(changed)} files of annotations have changed since the masks were drawn from them"
        yield Problem(level="warning", code="stale-masks", place=str(changed[0]), what=what, remedy=polygons.AGAIN)


def _split_note(root: Path, what: str, remedy: str = "", level: Level = "warning") -> Problem:
    return Problem(level=level, code="split", place=str(root / FILE_NAME), what=what, remedy=remedy)


def divide(root: Path, found: Found) -> tuple[dict[str, list[Pair]], dict[str, list[str]] | None]:
    """Assign each pair to a split: by its folder, then by `split.json`, else at random.

    Returns:
        `tuple`: `train`, `validation` and `test` → (image, mask) files; and what `save_split` must keep, or None.

    Raises:
        DataError: when there are too few pairs to draw from, or `split.json` is invalid or names missing files.
    """
    own = {split: list(pairs.values()) for split, pairs in found.splits.items()}
    if not found.lacking:
        return own, None
    wanted, source = (SPLITS, found.splits[ALL]) if ALL in own else (found.lacking, found.splits["train"])
    drawn, lists = None, load_split(root, wanted)
    if lists is None:
        check_enough(root, len(source), found.lacking)
        lists = draw_split(sorted(source), found.lacking)
        drawn = {split: lists[split] for split in wanted}
    known = {name for part in lists.values() for name in part}
    if gone := sorted(known - source.keys() - found.bad):
        remedy = (
            "Put the files back, or delete these lines. (If you delete the whole file, a new split is drawn, and "
            "scores before and after are from different test sets.)"
        )
        if all(os.path.splitext(name)[0] in source for name in gone):
            remedy = "Write them without the suffix."
        problems = [_split_note(root, f"{name} has no files", remedy, "error") for name in gone]
        heading = f"{root / FILE_NAME}: {len(gone)} names in it no longer have files:"
        raise DataError(problems=problems, heading=heading)
    if new := source.keys() - known:
        if "train" in wanted:
            what = f"{len(new)} new pairs count as train, since split.json does not name them"
            found.notes.append(_split_note(root, what, level="note"))
        lists["train"] = sorted([*lists.get("train", []), *new])
    drawn_pairs = {split: [source[name] for name in names if name in source] for split, names in lists.items()}
    return {split: (own | drawn_pairs)[split] for split in SPLITS}, drawn


def match_files(part: Part) -> tuple[dict[str, Pair], list[Problem], set[str], bool]:
    """Match the files of a part's two folders by their path without suffix, in Unicode's form NFC.

    Returns:
        `tuple`: name → (image, mask), sorted; what is wrong with files that have no partner, or more than one;
        their names; and whether there is any mask.
    """
    if part.pairs is not None:
        return _match_listed(part)
    images, problems, bad = _files(part.images, IMAGE_SUFFIXES, part.image_path, part.deep)
    masks, more, bad_masks = _files(part.masks, MASK_SUFFIXES, part.mask_path, part.deep)
    of_masks = {path: name for name, path in masks.items()}
    for name, path in [(name, path) for name, path in images.items() if path in of_masks]:
        if len(of_masks[path]) > len(name):  # keep the match of the longer pattern, whose name is shorter
            del masks[of_masks[path]]
        else:
            del images[name]
    if part.images == part.masks:
        images = {name: path for name, path in images.items() if not ending_beside(name, images)}
    endings = count_endings(images, masks)
    if ending := find_ending(images, masks):
        masks = {name.removesuffix(ending): path for name, path in masks.items()}
        bad_masks = {name.removesuffix(ending) for name in bad_masks}
    problems, bad = problems + more, bad | bad_masks
    if part.listed is not None:
        known = images.keys() | masks.keys() | bad
        names = {line: _listed_name(line, part.images.name, known) for line in part.listed}
        for line in (line for line, name in names.items() if name not in known):
            problems.append(_unpaired(part.source, f"names {line}, but there is no such image"))
            bad.add(line)
        images, masks = ({name: found[name] for name in names.values() if name in found} for found in (images, masks))
    for name in sorted((images.keys() ^ masks.keys()) - bad):
        what = "the image has no mask" if name in images else "the mask has no image"
        if not ending and name in masks:
            what += next((f' (there is one without "{end}")' for end in endings if name.endswith(end)), "")
        problems.append(_unpaired(images.get(name) or masks[name], what))
    bad |= images.keys() ^ masks.keys()
    pairs = {name: (images[name], masks[name]) for name in sorted((images.keys() & masks.keys()) - bad)}
    return pairs, problems, bad, bool(masks)


def _listed_name(line: str, folder: str, known: Collection[str]) -> str:
    """Return the picture's name for a line of a list, which may have a suffix or begin with folders."""
    path = PurePosixPath(unicodedata.normalize("NFC", line))
    paths = [path, *(path.relative_to(*path.parts[: n + 1]) for n, part in enumerate(path.parts) if part == folder)]
    stems = [each.with_suffix("") for each in paths if each.suffix.lower() in IMAGE_SUFFIXES]
    return next((str(each) for each in (*paths, *stems) if str(each) in known), line)


def _match_listed(part: Part) -> tuple[dict[str, Pair], list[Problem], set[str], bool]:
    pairs, problems, bad = {}, [], set()
    for image, mask in part.pairs:
        name = unicodedata.normalize("NFC", os.path.splitext(os.path.relpath(image, part.images))[0])
        other = pairs.setdefault(name, (image, mask))
        gone = [f"{path}, which does not exist" for path in (image, mask) if not path.is_file()]
        if gone or other != (image, mask):
            what = gone[0] if gone else f"{image} with {mask} and {other[0].name} with {other[1]}"
            problems.append(_unpaired(part.source, f"names {what}"))
            bad.add(name)
    return {name: pairs[name] for name in sorted(pairs.keys() - bad)}, problems, bad, True


def _unpaired(path: Path, what: str) -> Problem:
    return Problem(code="unpaired", place=str(path), what=what, remedy=ONE_TO_ONE)


def _files(
    folder: Path, suffixes: set[str], pattern: re.Pattern[str], deep: bool
) -> tuple[dict[str, Path], list[Problem], set[str]]:
    """Return name → file, where the name is the group of `pattern` in the path below `folder`; what is wrong with
    duplicate and unusable files; and the names of these. `deep`: include subfolders."""
    if not folder.is_dir():  # a validation or test split without masks
        return {}, [], set()

    def name_of(path: str | Path) -> str | None:
        found = pattern.fullmatch(unicodedata.normalize("NFC", Path(path).relative_to(folder).as_posix()))
        return found and "/".join(found.groups())

    files, obstacles = find_files(folder)
    obstacles = [problem for problem in obstacles if deep or Path(problem.place).parent == folder]
    found, bad = {}, {name_of(problem.place) for problem in obstacles} - {None}
    problems = [replace(problem, place=printable(problem.place)) for problem in obstacles]
    for path in files:
        name, suffix = name_of(path), path.suffix.lower()
        if name is None or not (deep or (path.parent == folder and path.name != PREVIEW)):
            continue
        if suffix in suffixes:
            if name in found:
                problems.append(_unpaired(path, f"there is also {found[name].name}"))
                bad.add(name)
            found[name] = path
        elif suffix in IMAGE_SUFFIXES:  # a mask in a format for images only
            what = f"the mask is a {path.suffix} file, whose compression alters ids and colours"
            problems.append(Problem(code="mask-kind", place=str(path), what=what, remedy=KINDS))
            bad.add(name)
    return found, problems, bad


def find_ending(images: Collection[str], masks: Collection[str]) -> str:
    """Return the ending that all masks add to their images' names, such as `_mask`; empty if there is none."""
    endings = count_endings(images, masks)
    if not endings or not set(images).isdisjoint(masks):
        return ""
    ending = endings.most_common(1)[0][0]
    return ending if all(name.endswith(ending) for name in masks) else ""


def count_endings(images: Collection[str], masks: Iterable[str]) -> Counter[str]:
    """Count what follows, in each mask's name, the longest image name at its start: ending → number of masks."""
    endings: Counter[str] = Counter()
    for name in masks:
        for end in range(len(name) - 1, 0, -1):
            if not name[end].isalnum() and name[:end] in images:  # x12 is not a mask of x1
                endings[name[end:]] += 1
                break
    return endings
