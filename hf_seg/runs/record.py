"""The record of a run, `results.json`: how it begins, how a finished run is written, and how it is read again."""

import json
import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from pydantic import InstanceOf, TypeAdapter, ValidationError
from torch import Tensor
from typing_extensions import TypedDict  # pydantic does not accept the one in Python 3.11

from hf_seg.data import DatasetSpec
from hf_seg.files import parse_json, write_json, write_whole
from hf_seg.problem import Refusal, first
from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import all_keys
from hf_seg.runs.card import build_card, describe_loss
from hf_seg.runs.page import write_page
from hf_seg.runs.plots import plot_confusion, plot_curves, plot_roc, plot_samples
from hf_seg.scoring.roc import stack_curves
from hf_seg.text import markdown_table

EVALUATED = "evaluated"  # `status` of an evaluation, which is not a run
FORMAT = 1  # of `results.json` and `run.json`; files of another format number are not read
RESULTS = "results.json"
CARD = "README.md"
ERRORS = "errors.html"  # written by `hf-seg errors`
PLOTS = {name: f"plots/{name}.png" for name in ("curves", "confusion", "roc", "samples")}
# confusion matrices of the test images, (images, C, C): `confusion` at the input's size, `native` at the image's own
PER_IMAGE = "test_confusion.npz"
ROC = "test_roc.npz"  # `fpr` and `tpr` of each class, (C, points)
SAMPLES = "test_samples.npz"  # `pixel_values`, `labels` and `predictions` of some test images; the classes' `palette`
# The arrays in these files: shape and dtype kinds. Axes of one letter have the same length; c stands for classes.
ARRAYS = {
    PER_IMAGE: {"confusion": ("icc", "iu"), "native": ("icc", "iu")},
    ROC: {"fpr": ("cp", "f"), "tpr": ("cp", "f")},
    SAMPLES: {
        **{"pixel_values": ("s3hw", "u"), "labels": ("shw", "u"), "predictions": ("shw", "u")},
        "palette": ("c3", "u"),
    },
}
Text = InstanceOf[str]  # `str` would refuse file names that are not UTF-8


def object_of(**keys: Any) -> type:
    """Build the type of a JSON object for [`find_fault`] from the types of its required keys; it may have more."""
    return TypedDict("object", keys)


_SCORES = {
    **dict.fromkeys(["mean_iou", "mean_accuracy", "overall_accuracy"], float | None),  # null: no pixel to score
    **dict.fromkeys(["per_category_iou", "per_category_accuracy"], dict[Text, float | None]),
    "confusion_matrix": list[list[int]],
}


def _needed(evaluation: bool) -> type:
    """Build the type that every `results.json` has. That of an evaluation has one key more, and its values about a
    training may be null, since hf_seg may not have trained the model."""

    def trained(kind: Any) -> Any:
        return kind | None if evaluation else kind

    sections = {name: object_of(**dict.fromkeys(keys, Any)) for name, keys in all_keys().items()}
    own = {"evaluation": object_of(model=Text, precision=Text, label_map=dict[Text, Text])} if evaluation else {}
    return object_of(
        **own,
        recipe=object_of(name=Text, **sections | {"training": trained(sections["training"])}),
        model=object_of(
            arch=Text,
            parameters=trained(int),
            multiply_adds=trained(int),
            logits_size=list[int],
            init=trained(
                object_of(frozen=bool, encoder=object_of(source=Text, sha256=Text | None), head=object_of(source=Text))
            ),
        ),
        data=object_of(
            **dict.fromkeys(["name", "title", "split_rule", "fingerprint"], Text),
            **dict.fromkeys(["homepage", "terms"], Text | None),
            publish_images=bool,
            class_names=list[Text],
            counts=object_of(train=int, validation=int, test=int),
            stored_size=object_of(test=list[int]),
        ),
        train=trained(
            object_of(
                **dict.fromkeys(["epochs", "seconds", "images_per_second"], float),
                **dict.fromkeys(["steps", "world_size"], int),
                precision=Text,
                history=list[object_of(epoch=float, step=int)],
            )
        ),
        validation=trained(object_of(**_SCORES)),
        test=object_of(
            **_SCORES,
            boundary_iou=object_of(mean=float | None, per_category=dict[Text, float | None]),
            native=object_of(mean_iou=float | None, ceilings=dict[Text, float | None]),
            roc_auc=dict[Text, float | None],
        ),
        environment=object_of(hardware=Text),
    )


NEEDED = {"finished": _needed(False), EVALUATED: _needed(True)}  # by `status`
# Trainer's arguments for pushing, which hf_seg.hub.push does instead: Trainer's own pushes can end a training.
PUSH = {"hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"}
# Keys that say where and how a run is computed, not what: a run may be continued with other values of these.
_HOW = {
    *("gradient_accumulation_steps", "per_device_eval_batch_size", "dataloader_num_workers", "disable_tqdm"),
    *("compile", "torch_compile_backend", "torch_compile_mode", "cuda_graphs"),
}
MACHINE_KEYS = {"data": {"root", "cache"}, "training": {"report_to", "push_to_hub"} | PUSH | _HOW}


def changed_keys(ours: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Describe the [`differing_keys`] of two recipes."""
    return [f"{key}: {there!r} there, {here!r} here" for key, (here, there) in differing_keys([ours, other]).items()]


def differing_keys(recipes: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Map each key in which effective recipes differ to the value that it has in each recipe.

    Keys about where and how a run is computed do not count. A key that a recipe lacks has its default value.
    """
    differing, keys = {}, all_keys()
    own = recipes[0]["data"]["name"] in ("folder", "hub")  # their `root` decides what the data is
    machine = MACHINE_KEYS | ({"data": {"cache"}} if own else {})
    for section in recipes[0]:
        sections = [recipe.get(section) or {} for recipe in recipes]
        for key in sorted({key for given in sections for key in given} - machine.get(section, set())):
            default = keys.get(section, {}).get(key, {}).get("default")
            values = [given.get(key, default) for given in sections]
            if any(value != values[0] for value in values):
                differing[f"{section}.{key}"] = values
    return differing


def begin_record(recipe: Recipe, model: dict[str, Any], data: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Build a run's record as it is before training; `model` and `data` are their descriptions."""
    return {
        "format": FORMAT,
        "recipe": {"name": recipe.name, **recipe.to_dict()},
        "status": "training",
        "model": model,
        "data": data,
        "environment": environment(device),
    }


def finish_run(folder: Path, record: dict[str, Any], samples: Sequence[Tensor], spec: DatasetSpec) -> dict[str, Any]:
    """Write, in the main process, the files of a finished run other than its model: plots, card, arrays and, last,
    `results.json`. An evaluation gets no curves and no card.

    Args:
        record (`dict`): from [`begin_record`], with `train`, `validation` and `test` from [`SegTrainer`]; the first
            two are None in an evaluation.
        samples (`Sequence[Tensor]`): from [`SegTrainer.sample`].

    Returns:
        `dict`: the content of `results.json`.
    """
    test = dict(record["test"])
    roc, confusion, native = test.pop("roc"), test.pop("per_image"), test.pop("native_per_image", None)
    test["roc_auc"] = {name: curve["auc"] for name, curve in roc.items()}
    trained = record["train"] is not None
    results = record | {"status": "finished" if trained else EVALUATED, "test": test}
    if PartialState().is_main_process:
        plots = {name: folder / path for name, path in PLOTS.items()}
        if trained:
            loss = describe_loss(results["recipe"]["training"])
            plot_curves(results["train"]["history"], plots["curves"], loss)
            write_page(str(build_card(results)), folder / CARD)
        plot_confusion(np.array(test["confusion_matrix"]), spec.class_names, plots["confusion"])
        plot_roc(roc, plots["roc"])
        plot_samples(*samples, spec.class_names, spec.palette, spec.ignore_index, plots["samples"])
        save_arrays(folder / PER_IMAGE, confusion=confusion, native=native)
        save_arrays(folder / ROC, **stack_curves(roc))
        pixel_values, labels, predictions = (tensor.numpy() for tensor in samples)
        arrays = {"pixel_values": (pixel_values * 255).round(), "labels": labels, "predictions": predictions}
        arrays["palette"] = np.array(spec.palette)
        save_arrays(folder / SAMPLES, **{name: array.astype(np.uint8) for name, array in arrays.items()})
        write_json(results, folder / RESULTS)  # last: a run with results is a finished run
    return results


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware that a reader needs to repeat a run."""
    packages = ("hf_seg", "torch", "torchvision", "transformers", "datasets", "evaluate", "accelerate", "timm")
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return {name: version(name) for name in packages} | {
        "python": platform.python_version(),
        "device": device.type,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else str(cpu),
        "cpu_count": str(os.cpu_count()),
    }


def load_results(run_dir: Path, or_evaluation: bool = False) -> dict[str, Any]:
    """Load the `results.json` of a finished run, or also of an evaluation, and check it against [`NEEDED`].

    Raises:
        Refusal: when it is not there, cannot be read, is of another version of hf_seg, or lacks something.
    """
    path, kind, remedy = run_dir / RESULTS, "a finished run", "pass --overwrite to train the run again"
    missing = "it is not a finished run", "name another folder"
    results = load_record(path, "format", dict, kind, remedy, missing, remedy)
    evaluated = results.get("status") == EVALUATED
    if evaluated and not or_evaluation:
        what = "is from an evaluation, and the folder has no model"
        raise Refusal(path, what, "name the run's own folder", code="record")
    if evaluated:
        kind, remedy = "an evaluation", "evaluate the model again, into another folder"
    if fault := find_fault(results, NEEDED[EVALUATED if evaluated else "finished"]):
        raise _fault(path, kind, fault, remedy)
    count = len(results["data"]["class_names"])
    for matrix in (results[split]["confusion_matrix"] for split in ("validation", "test") if results[split]):
        if any(len(part) != count for part in (matrix, *matrix)):
            raise _fault(path, kind, f"a confusion_matrix does not have {count} classes", remedy)
    return results


def load_record(
    path: Path, key: str, needed: Any, kind: str, remedy: str, missing: tuple[str, str], other: str | None
) -> dict[str, Any]:
    """Load a JSON file in a run's folder, and check it against the type `needed`; `key` holds its format number.

    `remedy` is for a damaged file, `missing` (what it means, and the remedy) for a missing one, and `other` for a file
    of another format. When `other` is None, such a file is returned unchecked.
    """
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what, remedy = missing
        raise Refusal(path.parent, f"holds no {path.name}, so {what}", remedy, code="record") from None
    except (OSError, ValueError) as error:
        raise Refusal(path, f"cannot be read ({error})", remedy, code="record") from error
    fault = find_fault(record, object_of(**{key: int}))
    if fault is None and record[key] != FORMAT:
        if other is None:
            return record
        what = f"is from another version of hf_seg (format {record[key]}; this version has {FORMAT})"
        raise Refusal(path, what, other, code="record")
    if fault is None:
        _add_newer_keys(record)
    if fault := fault or find_fault(record, needed):
        raise _fault(path, kind, fault, remedy)
    return record


def _add_newer_keys(record: dict[str, Any]) -> None:
    """Add the keys that are newer than a recorded recipe, with their defaults, which describe what was done then."""
    recipe = record.get("recipe")
    for section, keys in all_keys().items():
        given = recipe.get(section) if isinstance(recipe, dict) else None
        if isinstance(given, dict):
            recipe[section] = {key: keys[key]["default"] for key in keys if "default" in keys[key]} | given


def _fault(path: Path, kind: str, fault: str, remedy: str) -> Refusal:
    return Refusal(path, f"is not the record of {kind} ({fault})", remedy, code="record")


def find_fault(value: Any, needed: Any) -> str | None:
    """Describe the first thing that is wrong with a value from JSON, or return None.

    Args:
        needed: the type that the value must have, such as [`object_of`] builds.
    """
    try:
        TypeAdapter(needed).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]]
        words = {"missing": "is missing", "dict_type": "is not an object", "list_type": "is not a list"}
        wrong = words.get(first["type"]) or f"is {json.dumps(first['input'])[:40]}"
        return f"{''.join(parts).lstrip('.') or 'it'} {wrong}"
    return None


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays to a compressed `.npz` file, completely or not at all."""
    with write_whole(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def load_arrays(path: Path, classes: int | None = None) -> dict[str, np.ndarray] | None:
    """Load what [`save_arrays`] has written; None when there is no such file.

    Args:
        path (`Path`): a file in a run's folder, with a name in [`ARRAYS`].
        classes (`int`, *optional*): the run's number of classes, to check the shapes with.

    Raises:
        Refusal: when the file is damaged, or holds other arrays.
    """
    if not path.exists():
        return None
    remedy = "delete it to compare without it, or pass --overwrite to train the run again"
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds of errors for damaged bytes
        raise Refusal(path, f"cannot be read ({error})", remedy, code="arrays") from error
    sizes = {"3": 3} | ({"c": classes} if classes else {})
    for name, (letters, kinds) in ARRAYS[path.name].items():
        array = arrays.get(name, np.array(None))
        known = [sizes.setdefault(letter, size) for letter, size in zip(letters, array.shape, strict=False)]
        if array.dtype.kind not in kinds or len(letters) != array.ndim or (*known,) != array.shape:
            found = f"{array.dtype} of shape {array.shape}" if name in arrays else "missing"
            raise Refusal(path, f"does not hold what a run writes there ({name} is {found})", remedy, code="arrays")
    return arrays


def describe_encoder_run(encoder_weights: str | None) -> dict[str, Any] | None:
    """Describe the run that an encoder was taken from, for a run's record: a model inherits the terms of both.

    Args:
        encoder_weights (`str`, *optional*): the folder of a run or the weights in it; other weights have no record.

    Returns:
        `dict` with `name`, `data` and `init` (which may hold a `run` of its own), or None.
    """
    path = Path(encoder_weights or "").expanduser()
    folder = path if path.is_dir() else path.parent
    if not (encoder_weights and path.exists() and (folder / RESULTS).exists()):
        return None
    results = load_results(folder)
    return {"name": results["recipe"]["name"], "data": results["data"], "init": results["model"]["init"]}


def describe_provenance(provenance: dict) -> str:
    """Describe where initial weights came from: "encoder: 318 tensors from …, frozen; head: 8 fresh tensors"."""
    encoder = provenance["encoder"]
    text = f"{encoder['tensors_fresh']} fresh tensors ({encoder['source']})"
    if encoder["sha256"] is not None:
        text = f"{encoder['tensors_loaded']} tensors from {encoder['source']} (sha256 {encoder['sha256'][:12]})"
    frozen = ", frozen" if provenance["frozen"] else ""
    head = provenance["head"]
    parts = []
    if "classes_loaded" in head:
        parts += [f"{head['tensors_loaded']} tensors of the same model"]
        kept, fresh = head["classes_loaded"], head["classes_fresh"]
        if head["tensors_by_class"]:
            parts += [f"{head['tensors_by_class']} tensors by class, {len(kept)} classes kept"]
        if fresh:
            parts[-1] += f", {len(fresh)} fresh because that model has no class with their name ({first(fresh)})"
        if head["tensors_fresh"]:
            parts += [f"{head['tensors_fresh']} fresh tensors, missing there or of a different shape"]
    else:
        parts += [f"{head['tensors_fresh']} fresh tensors"]
    return f"encoder: {text}{frozen}; head: {'; '.join(parts)}"


def format_table(results: list[dict[str, Any]]) -> str:
    """Format the runs of a launch as a Markdown table, one row per run."""

    def score(value: float | None) -> str:
        return "–" if value is None or math.isnan(value) else f"{value:.4f}"

    rows = [("run", "test mIoU", "test pixel acc.", "validation mIoU", "parameters", "epochs", "minutes")]
    for result in results:
        test, train = result["test"], result["train"]
        scores = map(score, (test["mean_iou"], test["overall_accuracy"], result["validation"]["mean_iou"]))
        size = f"{result['model']['parameters'] / 1e6:.2f} M"
        rows.append((result["recipe"]["name"], *scores, size, f"{train['epochs']:g}", f"{train['seconds'] / 60:.1f}"))
    return markdown_table(rows)
