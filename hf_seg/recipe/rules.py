"""The checks of a single recipe: unknown keys, types, ranges, and keys that contradict each other.

No check raises for bad input. Each returns what it found, so that a launch can report everything at once.
"""

from __future__ import annotations

import ast
import difflib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from hf_seg.problem import did_you_mean
from hf_seg.recipe.keys import ON_TIMM, SECTIONS, TrainingRecipe, expectation, key_types, loss_parts, mismatch
from hf_seg.recipe.passthrough import (
    REFUSED,
    annotated_fields,
    key_type,
    scheduler_types,
    smp_architectures,
    smp_arguments,
    trackers,
    training_arguments,
)

Found = tuple[str, str, str]  # a key such as "training.learning_rate", what is wrong with it, the remedy

LONGEST_NAME = 255 - len("..replaced")  # bytes that file systems allow, less what hf_seg adds to a name
# Names that Windows reserves for devices, whatever follows the first dot.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def check_name(name: str) -> str | None:
    """Return why a recipe's name cannot be the name of a run's folder; None when it can."""
    if not name or name.startswith("."):
        return f'the name "{name}" is empty or begins with a dot, and a run\'s folder cannot have such a name'
    if name.endswith((".", " ")) or _DEVICES.fullmatch(name):
        return f'the name "{name}" is reserved on Windows, where a folder cannot have it'
    if (size := len(os.fsencode(name))) > LONGEST_NAME:
        return f"the name has {size} bytes, but the name of a run's folder may have at most {LONGEST_NAME}"
    return None


def is_path_or_hub_id(weights: str) -> bool:
    """Return whether `weights` is an existing file or folder, or has the form `org/name`."""
    return os.path.exists(weights) or HUB_ID.fullmatch(weights) is not None


def check_keys(section: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Found]]:
    """Return the valid values of a section, defaults included, and what is wrong with the other keys."""
    own = key_types()[section]
    passed_on = training_arguments() if section == "training" else {}
    known = passed_on | own  # where both have a key, hf_seg's has the wider type ("auto") and the range
    fields = {key: SECTIONS[section].__pydantic_fields__[key] for key in own}
    optional = {key: field for key, field in fields.items() if not field.is_required()}
    values = {key: field.get_default(call_default_factory=True) for key, field in optional.items()}
    found = []
    for key, value in given.items():
        if key in known:
            values[key] = value
            wrong = mismatch(value, known[key])
        elif section == "training" and key in REFUSED:
            why, remedy = REFUSED[key]
            wrong = f"cannot be set: {why}", remedy
        else:
            homes = [home for home, keys in key_types().items() if key in keys]
            accepted = f"accepted: {', '.join(own)}" + (", and those of TrainingArguments" if passed_on else "")
            wrong = "unknown key", f'it belongs to "{homes[0]}"' if homes else did_you_mean(key, known, accepted)
            # Most likely it is a misspelling of the closest known key: do not check that key's default.
            for close in difflib.get_close_matches(key, known, n=1):
                if close not in given:
                    values.pop(close, None)
        if wrong:
            values.pop(key, None)
            found.append((f"{section}.{key}", *wrong))
    for key in fields:
        if key not in optional and key not in given:
            found.append((f"{section}.{key}", "is missing", f"it must be {expectation(own[key].json_schema())}"))
    return values, found


# The keys of config for the sizes of SegFormer and of its encoder MiT (arXiv 2105.15203, tables 1 and 6).
_WIDE = {"hidden_sizes": [64, 128, 320, 512]}
SEGFORMER_SIZES: dict[str, dict[str, Any]] = {
    "b0": {"hidden_sizes": [32, 64, 160, 256], "depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b1": _WIDE | {"depths": [2, 2, 2, 2], "decoder_hidden_size": 256},
    "b2": _WIDE | {"depths": [3, 4, 6, 3], "decoder_hidden_size": 768},
    "b3": _WIDE | {"depths": [3, 4, 18, 3], "decoder_hidden_size": 768},
    "b4": _WIDE | {"depths": [3, 8, 27, 3], "decoder_hidden_size": 768},
    "b5": _WIDE | {"depths": [3, 6, 40, 3], "decoder_hidden_size": 768},
}
MIT = "nvidia/mit-"
SMP_REMEDY = "run `pip install 'hf_seg[smp]'`"


def config_of_size(path: str | None) -> dict[str, Any] | None:
    """Return the keys of config that a SegFormer's `model.path` stands for; None when there is no such size."""
    return {} if path is None else SEGFORMER_SIZES.get(path.removeprefix(MIT))


def check_model(model: Mapping[str, Any]) -> Iterator[Found]:
    """Check the keys of `model` against each other. A problem with a key that is missing here is already reported."""
    arch, init, weights, path = (model.get(key) for key in ("arch", "init", "encoder_weights", "path"))
    if arch in ("segformer", "auto") and model.get("encoder") is not None:
        remedy = "leave it out; path names the model, or SegFormer's size, b0 to b5"
        yield "model.encoder", 'is for "fcn" and "smp" only', remedy
    if arch in ON_TIMM and model.get("fast_head") is False:
        yield "model.fast_head", "is for SegFormer only", "leave it out"
    if arch == "auto":
        if "path" in model and path is None:
            remedy = "name a Hub id, a folder, a config.json or a model type of transformers"
            yield "model.path", 'is missing, and arch "auto" needs it', remedy
        if init == "imagenet":
            remedy = 'set "checkpoint", which takes the encoder\'s weights from path'
            yield "model.init", '"imagenet" is for "fcn", "smp" and "segformer"', remedy
        no_weights = path is not None and not is_path_or_hub_id(path)
        if init in ("checkpoint", "model") and model.get("encoder_weights", path) is None and no_weights:
            remedy = "name them in model.encoder_weights, or a Hub id as path"
            yield "model.path", f'"{path}" has no weights', remedy
    elif arch == "segformer" and config_of_size(path) is None:
        remedy = f'its sizes are {", ".join(SEGFORMER_SIZES)}; arch "auto" takes any model'
        yield "model.path", f'"{path}" is not a size of SegFormer', remedy
    elif arch == "smp":
        yield from _check_smp(model)
    elif arch == "fcn" and path is not None:
        yield "model.path", 'is not for "fcn"', "leave it out, or set another arch"
    if init == "scratch" and weights is not None:
        remedy = "leave it out, or set another init"
        yield "model.encoder_weights", 'contradicts init "scratch"', remedy
    if init == "scratch" and model.get("freeze_encoder"):
        remedy = 'set it to false, or init to "imagenet"'
        yield "model.freeze_encoder", "a frozen random encoder learns nothing", remedy
    if init in ("checkpoint", "model") and "encoder_weights" in model and weights is None and arch != "auto":
        remedy = "name a run's folder, a Hub id or another recipe"
        yield "model.encoder_weights", f'is missing, and init "{init}" needs it', remedy
    if init == "imagenet" and weights is not None and not is_path_or_hub_id(weights):
        what = f'"{weights}" is neither an existing path nor a Hub id of the form org/name'
        yield "model.encoder_weights", what, "correct it"
    if arch in ("fcn", "segformer"):  # the keys of other models are checked when the model is built
        yield from check_config(arch, model.get("config", {}), config_fields(arch))
    elif arch == "smp" and (fields := config_fields(arch, path)):
        yield from check_config(path, model.get("config", {}), fields)


def _check_smp(model: Mapping[str, Any]) -> Iterator[Found]:
    known = smp_architectures()
    if not known:
        yield "model.arch", '"smp" needs segmentation_models_pytorch, which is not installed', SMP_REMEDY
    elif "path" in model and (path := model["path"]) not in known:
        what = f'"{path}" is not an architecture of smp' if path else 'is missing, and arch "smp" needs it'
        yield "model.path", what, did_you_mean(str(path), known, f"it has {', '.join(known)}")
    elif model.get("path") == "dpt" and model.get("encoder", "") is None:
        yield "model.encoder", 'is missing, and "dpt" needs a ViT', "name one, such as vit_small_patch16_dinov3"


_OF_THE_DATA = ("it follows from the data set", "leave it out")
# Keys of model.config that a recipe may not set → (why, what to do).
REFUSED_CONFIG: dict[str, tuple[str, str]] = {
    **dict.fromkeys(["encoder", "encoder_name"], ("it has a key of its own", "set model.encoder")),
    "encoder_weights": ("it has keys of its own", "set model.init and model.encoder_weights"),
    **dict.fromkeys(["num_channels", "in_channels"], ("images are RGB", "leave it out")),
    **dict.fromkeys(["num_labels", "id2label", "label2id", "semantic_loss_ignore_index", "classes"], _OF_THE_DATA),
    **dict.fromkeys(
        ["use_auxiliary_head", "aux_params"], ("all models have the same loss, on one head", "leave it out")
    ),
    "activation": ("the loss needs logits", "leave it out"),
}
Fields = Mapping[str, tuple[TypeAdapter, Any]]  # of a configuration class: name → type and default


@functools.cache
def config_fields(arch: str, path: str | None = None) -> Fields:
    """Return what `model.config` may set: fields of the configuration class of `"fcn"` or `"segformer"`, or arguments
    of the smp class that `path` names; empty when there is no such class."""
    place = {
        "fcn": ("hf_seg", "models/configuration_fcn.py", "FCNConfig"),
        "segformer": ("transformers", "models/segformer/configuration_segformer.py", "SegformerConfig"),
    }
    if arch == "smp":
        found = smp_arguments(path) if path in smp_architectures() else ()
    else:
        found = annotated_fields(*place[arch])
    return {
        name: (key_type(annotation), ast.literal_eval(default))
        for name, annotation, default in found
        if default is not None and name not in REFUSED_CONFIG
    }


def check_config(model_type: str, config: Mapping[str, Any], fields: Fields) -> Iterator[Found]:
    """Check `model.config` of a model whose configuration class has these fields."""
    for key, value in config.items():
        if key in REFUSED_CONFIG:
            why, remedy = REFUSED_CONFIG[key]
            yield f"model.config.{key}", f"cannot be set: {why}", remedy
        elif key not in fields:  # the classes accept any key, and a misspelt one would change nothing
            remedy = did_you_mean(key, fields, f"accepted: {', '.join(fields)}")
            yield f"model.config.{key}", f'unknown key of "{model_type}"', remedy
        elif wrong := mismatch(value, fields[key][0]):
            yield f"model.config.{key}", *wrong
    # SegFormer would ignore surplus values, and raise an IndexError for missing ones
    stages = None
    if "num_encoder_blocks" in fields:
        stages = config.get("num_encoder_blocks", fields["num_encoder_blocks"][1])
    for key, (_, default) in fields.items():
        values = config.get(key, default)
        if isinstance(stages, int) and isinstance(default, tuple) and isinstance(values, list | tuple):
            if len(values) != stages:
                what = f"needs one value for each of the {stages} stages (num_encoder_blocks)"
                yield f"model.config.{key}", what, ""


# Keys that may differ between a run and the one its encoder comes from: head, initial random values, regularisation.
_NOT_THE_ENCODER = {
    "decoder_hidden_size",
    "initializer_range",
    "classifier_dropout_prob",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "drop_path_rate",
}


def encoder_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Describe why the encoder of the `model` section `there` does not fit `here`; empty when it fits."""
    archs = {there.get("arch"), here.get("arch")}
    if None in archs:
        return []  # reported already
    if len(archs) == 2:
        pairs = {"model.arch": (there["arch"], here["arch"])}
    elif archs == {"auto"}:  # only the built models show what config means for the encoder
        pairs = {"model.path": (there.get("path"), here.get("path"))}
    elif archs <= set(ON_TIMM):
        pairs = {"model.encoder": tuple(model.get("encoder") or "resnet50" for model in (there, here))}
        if archs == {"smp"}:
            arguments = [_encoder_arguments(model) for model in (there, here)]
            names = dict.fromkeys(name for each in arguments for name in each)
            pairs |= {f"model.config.{name}": tuple(each.get(name) for each in arguments) for name in names}
    else:
        pairs = {
            f"model.config.{key}": tuple(model.get("config", {}).get(key, default) for model in (there, here))
            for key, (_, default) in config_fields("segformer").items()
            if key not in _NOT_THE_ENCODER
        }
    said = {key: [json.dumps(value) for value in pair] for key, pair in pairs.items()}
    return [f"{key} is {first} there and {second} here" for key, (first, second) in said.items() if first != second]


def _encoder_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for the encoder in the `model` section of an smp model, defaults included."""
    config = model.get("config", {})
    fields = config_fields("smp", model.get("path"))
    return {key: config.get(key, default) for key, (_, default) in fields.items() if key.startswith("encoder_")}


def check_data(data: Mapping[str, Any]) -> Iterator[Found]:
    """Check the keys of `data` against each other."""
    name, root = data.get("name"), data.get("root")
    if isinstance(cache := data.get("cache"), str) and cache.lower() in ("", "true", "false", "none", "null"):
        yield "data.cache", f'is the text "{cache}"', 'it must be true, false, "auto" or the name of a folder'
    if str(name).startswith("synthetic_") and root is not None:
        yield "data.root", "generated data has no folder", "leave it out"
    if name == "folder" and "root" in data and root is None:
        remedy = "name the folder that holds images and masks"
        yield "data.root", 'is missing, and "folder" needs it', remedy
    if name not in ("folder", "hub", None) and data.get("on_bad_pair") == "drop":
        yield "data.on_bad_pair", 'is for "folder" and "hub" only', "leave it out"
    if low_high := data.get("value_range"):
        if name not in ("folder", "hub", None):
            yield "data.value_range", 'is for "folder" and "hub" only', "leave it out"
        if low_high[0] >= low_high[1]:
            yield "data.value_range", f"goes from {low_high[0]:g} to {low_high[1]:g}", "put the lower value first"
    if name not in ("folder", None) and data.get("layout") is not None:
        yield "data.layout", 'is for "folder" only', "leave it out"
    if name == "hub":
        yield from _check_hub(data)
    elif "name" in data:
        for key in ("path", "revision", "config_name", "image_column", "mask_column"):
            if data.get(key) is not None:
                yield f"data.{key}", 'is for "hub" only', 'leave it out, or set name to "hub"'


def _check_hub(data: Mapping[str, Any]) -> Iterator[Found]:
    path, image = data.get("path"), data.get("image_column")
    place = path and os.path.expanduser(path)
    if path is None:
        if "path" in data:
            remedy = "name a Hub id, org/name, or a folder of Parquet files"
            yield "data.path", 'is missing, and "hub" needs it', remedy
    elif not is_path_or_hub_id(place):
        yield "data.path", f'"{path}" is neither an existing folder nor a Hub id of the form org/name', "correct it"
    elif os.path.exists(place):
        if data.get("revision") is not None:
            yield "data.revision", f"is for a data set on the Hub only, and {path} is local", "leave it out"
    elif "root" in data and data["root"] is None:
        what = "is missing: a data set on the Hub needs a folder for classes.json"
        yield "data.root", what, f"make it with `hf-seg init {path} --out DIR`"
    if image is not None and image == data.get("mask_column"):
        yield "data.mask_column", f'is "{image}", the same as image_column', "name two columns"


# Schedules of transformers that silently ignore the warm-up → the remedy.
_NO_WARMUP = {"constant": "choose constant_with_warmup, or leave it out"}
_NO_WARMUP |= dict.fromkeys(["greedy", "reduce_lr_on_plateau"], "leave it out, or choose another")


def check_training(training: Mapping[str, Any]) -> Iterator[Found]:
    """Check the keys of `training` against each other."""
    schedule, decay = training.get("lr_scheduler_type"), TrainingRecipe().lr_decay_per_epoch
    warmup = training.get("warmup_steps", 0)
    if warmup and schedule in _NO_WARMUP:
        yield "training.warmup_steps", f'has no effect on the "{schedule}" schedule', _NO_WARMUP[schedule]
    elif warmup > 1 and warmup % 1:
        yield "training.warmup_steps", f"is {warmup:g}", "set a whole number of steps, or a share of all steps below 1"
    if schedule == "exponential":
        if training.get("lr_scheduler_kwargs") is not None:
            remedy = "set lr_decay_per_epoch instead"
            yield "training.lr_scheduler_kwargs", "the exponential schedule takes none", remedy
    elif schedule is not None:
        accepted = ("exponential", *scheduler_types())
        if schedule not in accepted:
            remedy = did_you_mean(schedule, accepted, f"accepted: {', '.join(accepted)}")
            yield "training.lr_scheduler_type", f'there is no schedule "{schedule}"', remedy
        elif training.get("lr_decay_per_epoch", decay) != decay:
            yield "training.lr_decay_per_epoch", f'has no effect on the "{schedule}" schedule', "leave it out"
    if training.get("bf16") is True and training.get("fp16") is True:
        yield "training.fp16", "is true, and bf16 too, but a run computes in one precision", "set one of them to false"
    yield from _check_loss(training)
    yield from _check_trackers(training.get("report_to"))
    batch, parts = training.get("global_train_batch_size"), training.get("gradient_accumulation_steps")
    compiled, graphs = training.get("compile") is True, training.get("cuda_graphs") is True
    if compiled and graphs:
        yield "training.cuda_graphs", "compile is true, and makes CUDA graphs too", "set one of them to false"
    elif (compiled or graphs) and parts is not None and parts > 1:
        # the sum of the parts' gradients would silently be wrong (pytorch issues 181723 and 169545)
        what = "CUDA graphs cannot sum the gradients of parts"
        remedy = f"set it to 1, or {'compile' if compiled else 'cuda_graphs'} to false"
        yield "training.gradient_accumulation_steps", what, remedy
    if (compiled or graphs) and training.get("ema_decay") is not None:
        key = "compile" if compiled else "cuda_graphs"
        yield "training.ema_decay", f"is not tested with {key}", f"leave it out, or set {key} to false"
    for key in ("torch_compile_backend", "torch_compile_mode"):
        if not compiled and training.get(key) is not None:
            yield f"training.{key}", "has no effect without compile", "set compile to true, or leave it out"
    if batch is not None and parts is not None and batch % parts:
        counts = ", ".join(str(count) for count in range(1, min(batch, 256) + 1) if batch % count == 0)
        what = f"a batch of {batch} cannot be divided by {parts}"
        yield "training.gradient_accumulation_steps", what, f"choose one of {counts}"


def check_batches(data: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Found]:
    """Check the batch keys of `training` against `data`."""
    images = training.get("per_device_eval_batch_size")
    if data.get("resize") == "crop" and images not in (None, 1):
        what = f'is {images}, but with data.resize "crop" pictures keep their sizes and are evaluated one by one'
        yield "training.per_device_eval_batch_size", what, "leave it out"


def check_rates(model: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Found]:
    """Check the learning-rate keys of `training` against `model`."""
    by_layer = training.get("layer_lr_decay") is not None
    if by_layer and model.get("arch") not in ("fcn", None):
        remedy = "leave it out; encoder_lr_multiplier is for any encoder"
        yield "training.layer_lr_decay", 'is for "fcn" only, whose layers timm knows', remedy
    for key in ("encoder_lr_multiplier", "layer_lr_decay"):
        if model.get("freeze_encoder") is True and training.get(key) not in (None, 1):
            yield f"training.{key}", "has no effect on a frozen encoder", "leave it out"


def _check_loss(training: Mapping[str, Any]) -> Iterator[Found]:
    if "loss" not in training:
        return
    parts, weights = loss_parts(training["loss"]), training.get("class_weights")
    if weights is not None and not parts.keys() & {"cross_entropy", "focal"}:
        what = f"has no effect on {' and '.join(parts)}, in which the classes of an image count the same"
        yield "training.class_weights", what, "leave it out, or add cross_entropy to training.loss"
    elif isinstance(weights, list) and not any(weights):
        yield "training.class_weights", "has no weight above 0, so no pixel counts", "correct it"
    if training.get("label_smoothing") and "cross_entropy" not in parts:
        what = f"has no effect on {' and '.join(parts)}"
        yield "training.label_smoothing", what, "leave it out, or add cross_entropy to training.loss"


def _check_trackers(report_to: str | list[str] | None) -> Iterator[Found]:
    if report_to in (None, "auto", "none", "all", ["none"], ["all"]):
        return
    known = trackers()
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name not in known:
            remedy = did_you_mean(name, known, f"accepted: auto, none, all, {', '.join(known)}")
            yield "training.report_to", f'there is no tracker "{name}"', remedy
        elif not known[name]:
            yield "training.report_to", f'"{name}" is not installed here', 'install its package, or set "none"'
