"""`hf-seg init`: from a folder of photographs and masks to a recipe that trains on it and a picture of both."""

from __future__ import annotations

import json
import math
import os
import shlex
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from hf_seg.data import folder
from hf_seg.data.classes import FILE_NAME, Classes, load_classes
from hf_seg.data.look import Findings, guess_classes, look_at_pairs, pixel_shares
from hf_seg.data.spec import DataError, PairError, report_pairs
from hf_seg.preview import plot_preview
from hf_seg.recipe import DataRecipe, ModelRecipe, Recipe, TrainingRecipe

MAX_IMAGE_SIZE = 256
MIN_STEPS = 1500  # of training: as many as the study's protocol makes on Oxford-IIIT Pet
RARE = 0.001  # share of the pixels below which a class is probably none


def init_folder(root: str | Path, *, arch: str = "segformer", overwrite: bool = False) -> bool:
    """Look at a folder, print what is in it, and write `classes.json`, `recipe.json` and `preview.png` there.

    Args:
        root (`str` or `Path`): in one of the layouts of docs/data.md. A `classes.json` that is there is used and kept.
        arch (`str`, *optional*, defaults to `"segformer"`): `"segformer"` or `"fcn"`.
        overwrite (`bool`, *optional*): write `recipe.json` and `preview.png` even where they exist.

    Returns:
        `bool`: whether all pairs can be used.

    Raises:
        DataError: when the folder is not in order, no pair can be used, the masks cannot be classes, or one of the
            files is there already (which is found before anything is looked at).
    """
    root = folder.find_root(str(root)).resolve()
    existing = [name for name in ("recipe.json", "preview.png") if (root / name).exists()]
    if existing and not overwrite:
        raise DataError(f"{root}: holds {' and '.join(existing)} already; move them away, or add --overwrite.")
    classes = load_classes(root) if (root / FILE_NAME).exists() else None
    pairs, errors = _find_pairs(root)
    findings = look_at_pairs(pairs, classes)
    errors += findings.errors
    if not findings.looks:
        raise report_pairs(str(root), errors, len(errors)) if errors else DataError(f"{root}: holds no pair.")
    if len(findings.looks) < 3 and not folder.has_split_folders(root):
        raise DataError(
            f"{root}: {len(findings.looks)} pairs cannot be split into train, validation and test: it takes 3."
        )
    written = ["recipe.json", "preview.png"]
    if classes is None:
        try:
            guessed = guess_classes(findings)
        except DataError as error:
            raise DataError(f"{root}: {error}") from None
        _write(root / FILE_NAME, _format_classes(guessed))
        classes = load_classes(root)
        written.insert(0, FILE_NAME)
    recipe = build_recipe(root, arch, findings)
    _write(root / "recipe.json", json.dumps(recipe, indent=2) + "\n")
    pairs = list(findings.looks)
    plot_preview(pairs[:: -(-len(pairs) // 8)], folder.build_mask_column(root), classes, root / "preview.png")
    print(_describe(root, findings, classes))
    if errors:
        print(f"\n{report_pairs(str(root), errors, len(pairs) + len(errors))}")
        print('Training stops at these, unless data.on_bad_pair in recipe.json is "drop".')
    print(f"\nWrote {', '.join(written)} in {root}. Look at preview.png; correct names and ids in {FILE_NAME}.")
    run = f"hf_seg/train.py {shlex.quote(str(root / 'recipe.json'))} --output_dir {shlex.quote(str(root / 'runs'))}"
    print("With few pictures and a connection, --model.init imagenet learns more; see docs/data.md.")
    print(f"Then: accelerate launch {run}")
    return not errors


def build_recipe(root: Path, arch: str, findings: Findings) -> dict[str, Any]:
    """The recipe of a run on a folder of one's own, every key with its value.

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
        data=DataRecipe(name="folder", root=str(root), image_size=image_size, augment="standard"),
        training=TrainingRecipe(
            num_train_epochs=epochs, global_train_batch_size=batch, eval_every_epochs=max(1, epochs // 15)
        ),
    )
    return recipe.to_dict()


def _find_pairs(root: Path) -> tuple[list[folder.Pair], list[PairError]]:
    """All pairs, of whatever split; no split is drawn yet."""
    pairs, errors = [], []
    for place in [root / split for split in folder.SPLITS] if folder.has_split_folders(root) else [root]:
        found, wrong = folder.find_pairs(place)
        pairs += found.values()
        errors += wrong
    return pairs, errors


def _describe(root: Path, findings: Findings, classes: Classes) -> str:
    """What is in the folder, for people."""
    looks = findings.looks.values()
    widths, heights = zip(*(look.size for look in looks), strict=True)
    turned = sum(look.turned for look in looks)
    lines = [
        f"{root}: {len(looks)} pairs",
        f"  images  {_counted(look.image_kind for look in looks)}; {_sizes(widths, heights)}"
        + (f"; turned upright: {turned}" if turned else ""),
        f"  masks   {_counted(look.mask_kind for look in looks)}; {'colours' if findings.by_color else 'ids'}",
    ]
    shares = pixel_shares(findings, classes)
    width = max(len(name) for _, name, *_ in shares)
    for value, name, share, pictures in shares:
        lines.append(f"  {value:>8}  {name:<{width}}  {share:7.2%} of the pixels, in {pictures} pictures")
    rare = sum(share < RARE for *_, share, _ in shares)
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
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}; make the folder writable") from None
