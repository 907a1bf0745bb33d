"""What can be wrong inside one recipe: unknown keys, types, ranges, and keys that contradict each other.

Nothing here raises for bad input: each check hands back what it found, so that a launch can report everything at once.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hf_seg.problem import did_you_mean
from hf_seg.recipe.passthrough import (
    REFUSED,
    REFUSED_CONFIG,
    config_fields,
    scheduler_types,
    trackers,
    training_arguments,
    unreadable_arguments,
)
from hf_seg.recipe.schema import expectation, mismatch

Keys = Mapping[str, Mapping[str, Any]]  # of one section: key → JSON Schema
Problem = tuple[str, str]  # a key such as "training.learning_rate" ("" for the file itself), what is wrong with it

LONGEST_NAME = 255 - len("..replaced")  # bytes that file systems take, less what is put around a run's name
# Names that Windows gives to devices, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def check_name(name: str) -> str | None:
    """What keeps a recipe's name from being that of a run's folder, in words; None when nothing does."""
    if not name or name.startswith("."):
        return f'the name "{name}" is empty or begins with a dot, and a run\'s folder cannot be called so'
    if name.endswith((".", " ")) or _DEVICES.fullmatch(name):
        return f'the name "{name}" is reserved on Windows, where a folder cannot be called so'
    size = len(os.fsencode(name))
    if size > LONGEST_NAME:
        return f"the name has {size} bytes, and a run's folder takes at most {LONGEST_NAME}"
    return None


def check_keys(section: str, given: Mapping[str, Any], sections: Mapping[str, Keys]) -> tuple[dict, list[Problem]]:
    """Check a section key by key.

    Returns:
        `tuple`: the section's values, defaults included and without those that something is wrong with; the problems.
    """
    keys = sections[section]
    passed_on = training_arguments() if section == "training" else {}
    known = {**passed_on, **keys}
    values = {key: copy.deepcopy(schema["default"]) for key, schema in keys.items() if "default" in schema}
    problems = []
    for key, value in given.items():
        if key in known:
            values[key] = value
            # Our own keys come last in `known`: where both have one, ours has the wider type ("auto") and the range.
            problem = mismatch(value, known[key])
        elif section == "training" and (key in REFUSED or key in unreadable_arguments()):
            problem = f"cannot be set: {REFUSED.get(key) or unreadable_arguments()[key]}"
        else:
            homes = [home for home, others in sections.items() if key in others]
            accepted = f"; accepted: {', '.join(keys)}" + (", and TrainingArguments' own" if passed_on else "")
            hint = f'; it belongs to "{homes[0]}"' if homes else did_you_mean(key, known, accepted)
            problem = f"unknown key{hint}"
            # Most likely the known key is what this one should have been: do not hold its default against the recipe.
            for close in difflib.get_close_matches(key, known, n=1):
                if close not in given:
                    values.pop(close, None)
        if problem:
            values.pop(key, None)
            problems.append((f"{section}.{key}", problem))
    for key, schema in keys.items():
        if key not in given and "default" not in schema:
            problems.append((f"{section}.{key}", f"is missing; it must be {expectation(schema)}"))
    for key, schema in keys.items():
        if schema.get("type") == "number" and isinstance(values.get(key), int):
            values[key] = float(values[key])
    return values, problems


def check_model(model: Mapping[str, Any]) -> Iterator[Problem]:
    """Rules between the keys of `model`. A key that is absent here had a problem of its own already."""
    arch, init, weights = model.get("arch"), model.get("init"), model.get("encoder_weights")
    if arch in ("segformer", "auto") and model.get("encoder") is not None:
        yield "model.encoder", 'is for "fcn" only; sizes of other models go into model.config, so leave it out'
    if arch == "auto":
        yield from _check_auto(model)
    elif arch is not None and model.get("path") is not None:
        yield "model.path", 'is for "auto" only; leave it out, or set arch to "auto"'
    if init == "scratch" and weights is not None:
        yield "model.encoder_weights", 'contradicts init "scratch"; leave it out, or set init to say what it is'
    if init == "scratch" and model.get("freeze_encoder"):
        yield "model.freeze_encoder", 'a frozen random encoder learns nothing; set it to false, or init to "imagenet"'
    if init == "checkpoint" and "encoder_weights" in model and weights is None and arch != "auto":
        remedy = "name a run's folder, a Hub id or another recipe"
        yield "model.encoder_weights", f'is missing, and init "checkpoint" needs it; {remedy}'
    if init == "imagenet" and weights is not None and not is_path_or_hub_id(weights):
        yield (
            "model.encoder_weights",
            f'"{weights}" is no existing path and no Hub id of the form org/name; correct it',
        )
    if arch in ("fcn", "segformer"):  # whose keys are known; those of others are checked when the model is built
        yield from _check_config(arch, model.get("config", {}))


def _check_auto(model: Mapping[str, Any]) -> Iterator[Problem]:
    path = model.get("path")
    if "path" in model and path is None:
        remedy = "name a Hub id, a folder, a config.json or a model type of transformers"
        yield "model.path", f'is missing, and arch "auto" needs it; {remedy}'
    if model.get("init") == "imagenet":
        yield (
            "model.init",
            '"imagenet" is for "fcn" and "segformer"; "checkpoint" takes the encoder\'s weights from path',
        )
    no_weights = path is not None and not is_path_or_hub_id(path)
    if model.get("init") == "checkpoint" and model.get("encoder_weights", path) is None and no_weights:
        yield "model.path", f'"{path}" has no weights; name them in model.encoder_weights, or a Hub id as path'


def _check_config(arch: str, config: Mapping[str, Any]) -> Iterator[Problem]:
    fields = config_fields(arch)
    for key, value in config.items():
        if key in REFUSED_CONFIG:
            yield f"model.config.{key}", f"cannot be set: {REFUSED_CONFIG[key]}"
        elif key not in fields:
            hint = did_you_mean(key, fields, f"; accepted: {', '.join(fields)}")
            yield f"model.config.{key}", f'unknown key of "{arch}"{hint}'
        elif problem := mismatch(value, fields[key][0]):
            yield f"model.config.{key}", problem
    stages = config.get("num_encoder_blocks", fields.get("num_encoder_blocks", (None, 0))[1])
    for key, (_, default) in fields.items():
        if isinstance(default, tuple) and isinstance(config.get(key, default), (list, tuple)):
            if isinstance(stages, int) and len(config.get(key, default)) != stages:
                yield f"model.config.{key}", f"needs one value for each of the {stages} stages (num_encoder_blocks)"


def check_data(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Rules between the keys of `data`."""
    if data.get("cache") == "":
        yield "data.cache", "is empty; it must be true, false, or the name of a folder"
    if str(data.get("name")).startswith("synthetic_") and data.get("root") is not None:
        yield "data.root", "generated data has no folder; leave it out"
    if data.get("name") == "folder" and "root" in data and data["root"] is None:
        yield "data.root", 'is missing, and "folder" needs it; name the folder that holds images and masks'
    if data.get("name") not in ("folder", "hub", None) and data.get("on_bad_pair") == "drop":
        yield "data.on_bad_pair", 'is for "folder" and "hub" only; leave it out'
    if data.get("name") == "hub":
        yield from _check_hub(data)
    elif "name" in data:
        for key in ("path", "revision", "config_name", "image_column", "mask_column"):
            if data.get(key) is not None:
                yield f"data.{key}", 'is for "hub" only; leave it out, or set name to "hub"'


def _check_hub(data: Mapping[str, Any]) -> Iterator[Problem]:
    path, root, image = data.get("path"), data.get("root"), data.get("image_column")
    if path is None:
        if "path" in data:
            yield "data.path", 'is missing, and "hub" needs it; name a Hub id, org/name, or a folder of Parquet files'
    elif not is_path_or_hub_id(os.path.expanduser(path)):
        yield "data.path", f'"{path}" is no existing folder and no Hub id of the form org/name; correct it'
    elif os.path.exists(os.path.expanduser(path)):
        if data.get("revision") is not None:
            yield "data.revision", f"is for a data set on the Hub only, and {path} is here; leave it out"
    elif root is None and "root" in data:
        remedy = f"`hf-seg init {path} --out DIR` makes it"
        yield "data.root", f"is missing: a data set on the Hub needs a folder for classes.json; {remedy}"
    if image is not None and image == data.get("mask_column"):
        yield "data.mask_column", f'is "{image}", as image_column is; name two columns'


def check_training(training: Mapping[str, Any], keys: Keys) -> Iterator[Problem]:
    """Rules between the keys of `training`."""
    schedule, decay = training.get("lr_scheduler_type"), keys["lr_decay_per_epoch"]["default"]
    if schedule == "exponential":
        if training.get("warmup_steps"):
            yield "training.warmup_steps", "the exponential schedule has no warm-up; leave it out or choose another"
        if training.get("lr_scheduler_kwargs") is not None:
            yield "training.lr_scheduler_kwargs", "the exponential schedule takes none; set lr_decay_per_epoch instead"
    elif schedule is not None:
        if schedule not in scheduler_types():
            accepted = ("exponential", *scheduler_types())
            hint = did_you_mean(schedule, accepted, f"; accepted: {', '.join(accepted)}")
            yield "training.lr_scheduler_type", f'there is no schedule "{schedule}"{hint}'
        elif training.get("lr_decay_per_epoch", decay) != decay:
            yield "training.lr_decay_per_epoch", f'has no effect on the "{schedule}" schedule; leave it out'
    yield from _check_trackers(training.get("report_to"))
    batch, parts = training.get("global_train_batch_size"), training.get("gradient_accumulation_steps")
    if batch is not None and parts is not None and batch % parts:
        counts = ", ".join(str(count) for count in range(1, min(batch, 256) + 1) if batch % count == 0)
        yield (
            "training.gradient_accumulation_steps",
            f"a batch of {batch} does not divide by {parts}; choose of {counts}",
        )


def _check_trackers(report_to: str | list[str] | None) -> Iterator[Problem]:
    if report_to in (None, "auto", "none", "all", ["none"], ["all"]):
        return
    known = trackers()
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name not in known:
            hint = did_you_mean(name, known, f"; accepted: auto, none, all, {', '.join(known)}")
            yield "training.report_to", f'there is no tracker "{name}"{hint}'
        elif not known[name]:
            yield "training.report_to", f'"{name}" is not installed here; install its package, or set "none"'


def is_path_or_hub_id(weights: str) -> bool:
    """Whether weights can be looked for outside of the recipes: an existing file or folder, or `org/name`."""
    return os.path.exists(weights) or _HUB_ID.fullmatch(weights) is not None


# What may differ between a run and the one that gives its encoder: the head, the first random numbers, regularisation.
_NOT_THE_ENCODER = {
    "decoder_hidden_size",
    "initializer_range",
    "classifier_dropout_prob",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
}


def encoder_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What keeps the encoder of one `model` section from being that of another, in words."""
    archs = {there.get("arch"), here.get("arch")}
    if None in archs:
        return []  # reported already
    if len(archs) == 2:
        pairs = {"model.arch": (there["arch"], here["arch"])}
    elif archs == {"auto"}:  # what its config means for the encoder, only the built models show
        pairs = {"model.path": (there.get("path"), here.get("path"))}
    elif archs == {"fcn"}:
        pairs = {"model.encoder": tuple(model.get("encoder") or "resnet50" for model in (there, here))}
    else:
        pairs = {
            f"model.config.{key}": tuple(model.get("config", {}).get(key, default) for model in (there, here))
            for key, (_, default) in config_fields("segformer").items()
            if key not in _NOT_THE_ENCODER
        }
    return [
        f"{key} is {json.dumps(pair[0])} there and {json.dumps(pair[1])} here; make them equal"
        for key, pair in pairs.items()
        if json.dumps(pair[0]) != json.dumps(pair[1])
    ]
