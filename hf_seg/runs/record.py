"""What a finished run leaves for others to read: its record and arrays, checked; and the table of a launch."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_seg.problem import RecipeError
from hf_seg.recipe.keys import all_keys
from hf_seg.recipe.reading import parse_json
from hf_seg.text import markdown_table

FORMAT = 1  # of `results.json` and `run.json`; one of another number is not read
RESULTS = "results.json"
PER_IMAGE = "test_confusion.npz"  # `confusion`: of each test image, (images, C, C)
ROC = "test_roc.npz"  # `fpr` and `tpr` of each class, (C, points)
SAMPLES = "test_samples.npz"  # `pixel_values`, `labels` and `predictions` of some test images; the classes' `palette`
# What these hold: shapes, in which a letter stands for the same number everywhere and c for that of classes; dtypes.
ARRAYS = {
    PER_IMAGE: {"confusion": ("icc", "iu")},
    ROC: {"fpr": ("cp", "f"), "tpr": ("cp", "f")},
    SAMPLES: {
        "pixel_values": ("s3hw", "u"),
        "labels": ("shw", "u"),
        "predictions": ("shw", "u"),
        "palette": ("c3", "u"),
    },
}
_NUMBER = (int, float)
_SCORE = (int, float, type(None))  # null: there is none, as of pixels without a label
_SCORES = {
    **dict.fromkeys(["mean_iou", "mean_accuracy", "overall_accuracy"], _SCORE),
    **dict.fromkeys(["per_category_iou", "per_category_accuracy"], {"*": _SCORE}),
    "confusion_matrix": [[int]],
}
# What every reader of `results.json` may rely on, see [`find_fault`].
NEEDED = {
    "recipe": {"name": str} | {section: dict.fromkeys(keys, object) for section, keys in all_keys().items()},
    "model": {
        "arch": str,
        "parameters": int,
        "multiply_adds": int,
        "logits_size": [int],
        "init": {"frozen": bool, "encoder": {"source": str, "sha256": (str, type(None))}, "head": {"source": str}},
    },
    "data": {
        **dict.fromkeys(["name", "title", "split_rule", "fingerprint"], str),
        **dict.fromkeys(["homepage", "terms"], (str, type(None))),
        "publish_images": bool,
        "class_names": [str],
        "counts": dict.fromkeys(["train", "validation", "test"], int),
        "stored_size": {"test": [int]},
    },
    "train": {
        **dict.fromkeys(["epochs", "seconds", "images_per_second"], _NUMBER),
        **dict.fromkeys(["steps", "world_size"], int),
        "precision": str,
        "history": [{"epoch": _NUMBER, "step": int}],
    },
    "validation": _SCORES,
    "test": {
        **_SCORES,
        "boundary_iou": {"mean": _SCORE, "per_category": {"*": _SCORE}},
        "native": {"mean_iou": _SCORE, "ceilings": {"*": _SCORE}},
        "roc_auc": {"*": _SCORE},
    },
    "environment": {"hardware": str},
}
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


def changed_keys(ours: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What tells two effective recipes apart, in words."""
    return [f"{key}: {there!r} there, {here!r} here" for key, (here, there) in differing_keys([ours, other]).items()]


def differing_keys(recipes: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys in which effective recipes differ, with the value that each has.

    Where and how they are computed does not count. A key that one lacks has its default there.
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
    """A finished run's `results.json`, with all that [`NEEDED`] names.

    Raises:
        RecipeError: when it is not there, cannot be read, is of another version of hf_seg, or lacks something.
    """
    path = run_dir / RESULTS
    try:
        results = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{run_dir}: holds no {RESULTS}, so it is no finished run; name another folder") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}); pass --overwrite to train the run again") from error
    fault = find_fault(results, {"format": int})
    if fault is None and results["format"] != FORMAT:
        raise RecipeError(
            f"{path}: is of another version of hf_seg (format {results['format']}, and this version has {FORMAT}); "
            "pass --overwrite to train the run again"
        )
    fault = fault or find_fault(results, NEEDED)
    if fault is None:
        count = len(results["data"]["class_names"])
        sizes = {len(row) for split in ("validation", "test") for row in results[split]["confusion_matrix"]}
        rows = {len(results[split]["confusion_matrix"]) for split in ("validation", "test")}
        fault = None if sizes | rows == {count} else f"a confusion_matrix is not of {count} classes"
    if fault:
        raise RecipeError(
            f"{path}: is not the record of a finished run ({fault}); pass --overwrite to train the run again"
        )
    return results


def find_fault(value: Any, needed: Any, place: str = "") -> str | None:
    """Compare a value from JSON with what is needed of it.

    Args:
        value: what was read.
        needed: a type, or a tuple of them; a list with what each item needs; or a mapping of keys to what each needs,
            in which `"*"` stands for whatever keys there are. More keys may be there.
        place (`str`): names the value.

    Returns:
        `str`: the first thing that is wrong, in words, or None.
    """
    if isinstance(needed, Mapping):
        if not isinstance(value, dict):
            return f"{place or 'it'} is no object"
        inner = f"{place}." if place else ""
        missing = [key for key in needed if key != "*" and key not in value]
        if missing:
            return f"{inner}{missing[0]} is missing"
        keys = value if "*" in needed else needed
        faults = (find_fault(value[key], needed.get(key, needed.get("*")), f"{inner}{key}") for key in keys)
        return next(filter(None, faults), None)
    if isinstance(needed, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        faults = (find_fault(item, needed[0], f"{place}[{number}]") for number, item in enumerate(value))
        return next(filter(None, faults), None)
    types = needed if isinstance(needed, tuple) else (needed,)
    if isinstance(value, types) and (not isinstance(value, bool) or bool in types or object in types):
        return None
    return f"{place} is {json.dumps(value)[:40]}"


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


def load_arrays(path: Path, classes: int | None = None) -> dict[str, np.ndarray] | None:
    """What [`save_arrays`] has kept; None when there is no such file.

    Args:
        path (`Path`): in a run's folder, one of [`ARRAYS`].
        classes (`int`, *optional*): how many the run has.

    Raises:
        RecipeError: when the file is damaged, or holds other arrays.
    """
    if not path.exists():
        return None
    remedy = "delete it, and the comparison does without it, or pass --overwrite to train the run again"
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds for damaged bytes
        raise RecipeError(f"{path}: cannot be read ({error}); {remedy}") from error
    sizes = {"3": 3} | ({"c": classes} if classes else {})
    for name, (letters, kinds) in ARRAYS[path.name].items():
        array = arrays.get(name)
        if (
            array is None
            or array.dtype.kind not in kinds
            or array.ndim != len(letters)
            or any(sizes.setdefault(letter, size) != size for letter, size in zip(letters, array.shape, strict=True))
        ):
            found = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
            raise RecipeError(f"{path}: does not hold what a run keeps there ({name} is {found}); {remedy}")
    return arrays


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
    if not path.exists() or not (folder / RESULTS).exists():
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
    return markdown_table(rows)
