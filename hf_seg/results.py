"""Run folders: whose they are, how far they got, what they hold at the end, and the table of a launch."""

import json
import math
import os
import platform
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock, Timeout

from hf_seg.processes import check_shared, on_main_process
from hf_seg.recipe import Recipe, RecipeError
from hf_seg.recipe_keys import all_keys

PER_IMAGE = "test_confusion.npz"  # `confusion`: of each test image, (images, C, C)
ROC = "test_roc.npz"  # `fpr` and `tpr` of each class, (C, points)
SAMPLES = "test_samples.npz"  # `pixel_values`, `labels` and `predictions` of some test images; the classes' `palette`
# Keys that say where and how a run is computed, not what: a run may be continued with other values of these.
MACHINE_KEYS = {
    "data": {"root", "cache"},
    "training": {
        "report_to",
        "gradient_accumulation_steps",
        "per_device_eval_batch_size",
        "dataloader_num_workers",
        "disable_tqdm",
        "push_to_hub",
        "hub_model_id",
        "hub_strategy",
        "hub_private_repo",
        "hub_always_push",
        "hub_revision",
    },
}


def open_run(recipe: Recipe, run_dir: Path, overwrite: bool = False) -> str:
    """Find out what a run folder holds, and refuse one that belongs to something else.

    Args:
        recipe ([`Recipe`]): the effective recipe of this launch.
        run_dir (`Path`): `<output_dir>/<recipe name>`, which may not exist yet.
        overwrite (`bool`): the user wants this run made anew.

    Returns:
        `str`: `"new"`, `"interrupted"` (made by the same recipe, no results yet) or `"finished"`.

    Raises:
        RecipeError: when the folder holds another recipe's run, or something that is not a run.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise RecipeError(f"{run_dir}: is a file, and a run needs a folder of this name; move the file away")
    saved = run_dir / "recipe.json"
    # a launch that was killed while it wrote the recipe leaves the partial file and nothing else
    if not run_dir.exists() or all(path.name == f"{saved.name}.partial" for path in run_dir.iterdir()):
        return "new"
    if not saved.exists():
        raise RecipeError(
            f"{run_dir}: the folder is not empty and holds no recipe.json, so it is not a run of hf_seg; move "
            "it away or choose another --output_dir"
        )
    if overwrite:
        return "new"
    try:
        changed = changed_keys(recipe.to_dict(), json.loads(saved.read_text()))
    except (ValueError, AttributeError, TypeError) as error:
        raise RecipeError(f"{saved}: is not a recipe ({error}); pass --overwrite to make the run anew") from error
    if changed:
        raise RecipeError(
            f"{run_dir}: holds a run of another recipe ({'; '.join(changed)}); give the recipe file another name, "
            "choose another --output_dir, or pass --overwrite to replace that run"
        )
    return "finished" if (run_dir / "results.json").exists() else "interrupted"


def changed_keys(ours: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What tells two effective recipes apart, in words."""
    return [f"{key}: {there!r} there, {here!r} here" for key, (here, there) in differing_keys([ours, other]).items()]


def differing_keys(recipes: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys in which effective recipes differ, with the value that each has.

    Where and how they are computed does not count. A key that one lacks, since it is of an older version of hf_seg,
    has its default there.
    """
    differing, keys = {}, all_keys()
    own = recipes[0]["data"]["name"] in ("folder", "hub")  # whose root says what the data is
    machine = MACHINE_KEYS | ({"data": {"cache"}} if own else {})
    for section in recipes[0]:
        sections = [recipe.get(section, {}) for recipe in recipes]
        for key in sorted({key for given in sections for key in given} - machine.get(section, set())):
            default = keys.get(section, {}).get(key, {}).get("default")
            values = [given.get(key, default) for given in sections]
            if any(value != values[0] for value in values):
                differing[f"{section}.{key}"] = values
    return differing


@contextmanager
def hold_runs(recipes: list[Recipe], output_dir: Path, overwrite: set[str]) -> Iterator[None]:
    """Keep other launches out of the folders of the runs that this one works on, until the block ends.

    The operating system lets go of the locks when their holder dies.

    Raises:
        RecipeError: on every rank, when another launch is at work in one of them, nothing can be written there, or
            the ranks do not share the folder.
    """
    with ExitStack() as locks:

        def lock() -> None:
            for recipe in recipes:
                run_dir = output_dir / recipe.name
                if open_run(recipe, run_dir, recipe.name in overwrite) == "finished":
                    continue
                try:
                    output_dir.mkdir(parents=True, exist_ok=True)
                    locks.enter_context(FileLock(output_dir / f".{recipe.name}.lock", timeout=0))
                except Timeout:
                    raise RecipeError(
                        f"{run_dir}: another launch is at work in it; wait until it ends, stop it, or choose another "
                        "--output_dir"
                    ) from None
                except OSError as error:
                    raise RecipeError(
                        f"{output_dir}: nothing can be written there ({error.strerror}); choose another --output_dir"
                    ) from error

        on_main_process(lock)
        if PartialState().num_processes > 1:
            check_shared(output_dir)
        yield


def start_run(recipe: Recipe, run_dir: Path, overwrite: bool = False) -> None:
    """Make the run folder with the effective recipe in it; with `overwrite`, clear an old run away first.

    Every rank calls this; the main process does it, between two barriers: none may still be looking at the old run.
    """
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        old = run_dir.with_name(f".{run_dir.name}.replaced")
        if old.exists():  # of a launch that was killed while it removed it
            shutil.rmtree(old)
        if overwrite and (run_dir / "recipe.json").exists():
            os.replace(run_dir, old)  # all at once: a run folder without its recipe.json would be refused
            shutil.rmtree(old)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(recipe.to_dict(), run_dir / "recipe.json")
    state.wait_for_everyone()


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a reader needs to repeat a run."""
    packages = ("hf_seg", "torch", "torchvision", "transformers", "datasets", "evaluate", "accelerate", "timm")
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else str(cpu)
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "device": device.type,
        "hardware": hardware,
        "cpu_count": str(os.cpu_count()),
    }


def write_json(value: Any, path: Path) -> None:
    """Write strict JSON (a number that is not finite becomes null), whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_strict(value), indent=2, allow_nan=False) + "\n")
    os.replace(partial, path)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_results(run_dir: Path) -> dict[str, Any]:
    """A finished run's `results.json`.

    Raises:
        RecipeError: when the file cannot be read.
    """
    path = run_dir / "results.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); pass --overwrite to make the run anew") from error


def as_bytes(pixel_values: torch.Tensor, labels: torch.Tensor, predictions: torch.Tensor) -> dict[str, np.ndarray]:
    """Samples, as [`SegTrainer.sample`] gives them, as small arrays to be kept."""
    return {
        "pixel_values": (pixel_values.numpy() * 255).round().astype(np.uint8),
        "labels": labels.numpy().astype(np.uint8),
        "predictions": predictions.numpy().astype(np.uint8),
    }


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Keep arrays in a file, compressed; whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def load_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """What [`save_arrays`] has kept; None when there is no such file.

    Raises:
        RecipeError: when the file is damaged.
    """
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); train the run anew with --overwrite") from error


def describe_encoder_run(encoder_weights: str | None) -> dict[str, Any] | None:
    """What a run's record says of the run that its encoder was taken from: a model inherits the terms of both.

    Args:
        encoder_weights (`str`, *optional*): the folder of a run or the weights in it; others have no record.

    Returns:
        `dict` with `name`, `data` and `init` (which may hold a `run` of its own), or None.

    Raises:
        RecipeError: when the other run's `results.json` cannot be read.
    """
    if encoder_weights is None:
        return None
    path = Path(encoder_weights).expanduser()
    folder = path if path.is_dir() else path.parent
    if not path.exists() or not (folder / "results.json").exists():
        return None
    results = load_results(folder)
    return {"name": results["recipe"]["name"], "data": results["data"], "init": results["model"]["init"]}


def format_table(results: list[dict[str, Any]]) -> str:
    """The runs of a launch, a line each, as a Markdown table."""

    def score(value: float | None) -> str:
        return "–" if value is None or math.isnan(value) else f"{value:.4f}"

    rows = [("run", "test mIoU", "test pixel acc.", "validation mIoU", "parameters", "epochs", "minutes")]
    for result in results:
        rows.append(
            (
                result["recipe"]["name"],
                score(result["test"]["mean_iou"]),
                score(result["test"]["overall_accuracy"]),
                score(result["validation"]["mean_iou"]),
                f"{result['model']['parameters'] / 1e6:.2f} M",
                f"{result['train']['epochs']:g}",
                f"{result['train']['seconds'] / 60:.1f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
