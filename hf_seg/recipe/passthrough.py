"""The arguments that a recipe may pass on to transformers, read from the installed package's source, not imported.

Importing transformers' `TrainingArguments` takes seconds and imports torch, and creating one with `bf16` fails on a
machine without a GPU. Its source gives the same names and types, so a recipe can be checked anywhere, instantly.
The same is done for the configuration classes of models.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

from pydantic import Field, TypeAdapter

from hf_seg.recipe.keys import STRICT

_LAUNCHER = "how a run is spread over machines is set in the launcher's file (accelerate config)"
_DEVICE = "the launch decides on which device a run computes"
_SCIENCE = "a recipe describes model, data and training only"
_GONE = "transformers 5 has no such argument"
_RENAMED = "hf_seg has another name for it"
_BEST = "the checkpoint with the best validation mIoU is kept, as in the study"
_SUMMED = "the metric is summed up batch by batch on the device, and nothing is gathered"
_TEXT = "it is made for text models and does nothing for images"
_EVALUATE = "validation and checkpoints happen every eval_every_epochs epochs"
_ADAMW = ("the optimiser is AdamW by protocol", "you can set learning_rate, weight_decay, amsgrad and adam_*")
_REFUSED: dict[str, tuple[str, str]] = {
    "output_dir": ("a run's folder is named after its recipe file", "rename the file"),
    "remove_unused_columns": ("the columns image and mask are needed by the transform, so it is always false", ""),
    "label_names": ("the labels are always the transformed masks", ""),
    "per_device_train_batch_size auto_find_batch_size per_gpu_train_batch_size": (
        "the per-device batch is computed from the number of ranks",
        "set global_train_batch_size",
    ),
    "do_train do_eval do_predict": ("every run trains, validates and tests", ""),
    "eval_strategy eval_steps eval_delay save_strategy save_steps": (_EVALUATE, "set that key"),
    "evaluation_strategy evaluate_during_training": (_GONE, f"{_EVALUATE}, so set that"),
    "load_best_model_at_end metric_for_best_model greater_is_better": (_BEST, ""),
    "optim optim_args optim_target_modules adafactor optimizer optimiser": _ADAMW,
    "batch_eval_metrics prediction_loss_only eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
    "include_for_metrics include_inputs_for_metrics": (_SUMMED, ""),
    "label_smoothing_factor": (_RENAMED, "set label_smoothing"),
    "bf16_full_eval fp16_full_eval": ("scores are computed at the precision of training", "set bf16"),
    "save_only_model": ("checkpoints keep the optimiser's state, so that an interrupted run can resume", ""),
    "enable_jit_checkpoint": (
        "hf_seg saves and stops at SIGTERM itself, and two signal handlers disturb each other",
        "leave it out",
    ),
    "data_seed": ("one seed is used for weights, shuffling and augmentation", "set seed"),
    "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint": (
        "an interrupted run resumes when the same command is given again",
        "",
    ),
    "mean_iou_script": ("a recipe cannot name code", "add --mean_iou_script FILE to the command"),
    "overwrite_output_dir": (_GONE, "to train a finished run again, add --overwrite to the command"),
    "logging_dir": (f"{_GONE}, and TensorBoard's files go into the run's folder", "leave it out"),
    "warmup_ratio": (_GONE, "set warmup_steps below 1 for a share of all steps"),
    "no_cuda use_cpu": (_DEVICE, "set the variable ACCELERATE_USE_CPU=true for the launch"),
    "eval_on_start": ("the scores of random weights are no result, and a resumed run would repeat it", "leave it out"),
    "dataloader_persistent_workers": (
        "workers persist from epoch to epoch, except with random crops, which they would not draw again",
        "leave it out",
    ),
    "push_to_hub_model_id": (_GONE, "set hub_model_id"),
    "save_safetensors": (_GONE, "weights are always saved as safetensors"),
    "hub_token push_to_hub_token": ("secrets never go into a recipe", "run `hf auth login` or set HF_TOKEN"),
    "average_tokens_across_devices include_num_input_tokens_seen include_tokens_per_second use_liger_kernel use_cache "
    "liger_kernel_config neftune_noise_alpha train_sampling_strategy length_column_name group_by_length": (_TEXT, ""),
    "gradient_checkpointing": ("transformers 5.23 has renamed it", "set activation_checkpointing"),
    "gradient_checkpointing_kwargs": ("transformers 5.23 has renamed it", "set activation_checkpointing_kwargs"),
    "deepspeed fsdp fsdp_config accelerator_config parallelism_config local_rank ddp_backend": (_LAUNCHER, _SCIENCE),
    "ddp_timeout": ("how long processes wait depends on the machines", "set the variable HF_SEG_TIMEOUT"),
    "split_batches dispatch_batches": (_GONE, f"{_LAUNCHER}, and {_SCIENCE}"),
    # Names that other trainers use.
    "batch_size train_batch_size": (_RENAMED, "set global_train_batch_size"),
    "lr": (_RENAMED, "set learning_rate"),
    "epochs num_epochs max_epochs": (_RENAMED, "set num_train_epochs"),
    "torch_compile": (_RENAMED, "set compile"),
}
# Arguments that a recipe may not set → (why, what to do). Some are no longer in transformers, but users may know them.
REFUSED = {name: said for names, said in _REFUSED.items() for name in names.split()}

# Limits of values that transformers would refuse only after the data is loaded, or that would fail even later.
_LIMITS: dict[str, Any] = {
    "warmup_steps": Field(ge=0),
    "adam_beta1": Field(ge=0, lt=1),
    "adam_beta2": Field(ge=0, lt=1),
    "adam_epsilon": Field(ge=0),
    "logging_steps": Field(gt=0),
    "per_device_eval_batch_size": Field(ge=1),
    "save_total_limit": Field(ge=1),
    "dataloader_num_workers": Field(ge=0),
    "dataloader_prefetch_factor": Field(ge=1),
    "torch_empty_cache_steps": Field(ge=1),
}
_TYPES: dict[str, Any] = {
    "Dict": dict,
    "Iterable": list,
    "Optional": Optional,
    "Sequence": list,
    "Union": Union,
    "__builtins__": {},
    "int": Annotated[int, Field(ge=-(2**63), lt=2**63)],
    **{kind.__name__: kind for kind in (float, bool, str, dict, list, tuple)},
    "Any": Any,
    "Literal": Literal,
}


def key_type(annotation: str, enums: dict[str, Any] | None = None, limits: Any = None) -> TypeAdapter:
    """Build a key's type from its annotation in source code, e.g. `"bool | Literal['auto']"`.

    Args:
        enums (`dict`, *optional*): enumeration classes that the annotation may name → `Literal` of their values.
        limits (`Field`, *optional*): further limits of the value.

    Raises:
        TypeError: when a part of the annotation is not understood.
    """
    enums = enums or {}
    parts = annotation.split(" | ")
    if enums.keys() & {*parts}:  # only the enumeration's values: `str` would accept any text
        annotation = " | ".join(part for part in parts if part != "str")
    try:
        kind = eval(annotation, _TYPES | enums)  # from installed code, and all its names are those of types
        return TypeAdapter(kind if limits is None else Annotated[kind, limits], config=STRICT)
    except (NameError, TypeError) as error:
        raise TypeError(f"hf_seg cannot read the type annotation {annotation!r} ({error})") from error


@functools.cache
def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; run pip install {package}", name=package)
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _classes(package: str, file: str) -> dict[str, ast.ClassDef]:
    source = (_folder(package) / file).read_text(encoding="utf-8")
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def annotated_fields(package: str, file: str, name: str) -> Iterator[tuple[str, str, ast.expr | None]]:
    """Yield the annotated fields of a class: name, annotation, and the expression of the default, or None."""
    for item in _classes(package, file)[name].body:
        if isinstance(item, ast.AnnAssign):
            yield item.target.id, ast.unparse(item.annotation), item.value


SMP = "segmentation_models_pytorch"


def smp_architectures() -> dict[str, tuple[str, str]]:
    """Return smp's architectures: name, such as `"unet"` → file and name of the class; empty without smp."""
    if importlib.util.find_spec(SMP) is None:
        return {}
    imports = ast.parse((_folder(SMP) / "__init__.py").read_text(encoding="utf-8")).body
    return {
        alias.name.lower(): (f"{node.module.replace('.', '/')}/model.py", alias.name)
        for node in imports
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("decoders.")
        for alias in node.names
    }


def smp_arguments(architecture: str) -> Iterator[tuple[str, str, ast.expr | None]]:
    """Yield the arguments of the class of an smp architecture: name, annotation, and the expression of the default."""
    file, name = smp_architectures()[architecture]
    (init,) = (item for item in _classes(SMP, file)[name].body if getattr(item, "name", "") == "__init__")
    for argument, default in zip(init.args.args[1:], init.args.defaults, strict=True):
        yield argument.arg, ast.unparse(argument.annotation), default


def _enum_values(node: ast.ClassDef) -> tuple[str, ...]:
    assigned = (item.value for item in node.body if isinstance(item, ast.Assign))
    return tuple(value.value for value in assigned if isinstance(value, ast.Constant))


@functools.cache
def scheduler_types() -> tuple[str, ...]:
    """Return the values of transformers' `SchedulerType`, e.g. `"linear"`."""
    return _enum_values(_classes("transformers", "trainer_utils.py")["SchedulerType"])


# Trackers whose package has another name; kubeflow needs no package of its own.
_PACKAGES = {
    "azure_ml": ["azureml"],
    "flyte": ["flytekit"],
    "kubeflow": ["transformers"],
    "tensorboard": ["tensorboard", "tensorboardX"],
}


def trackers() -> dict[str, bool]:
    """Return the names that `report_to` accepts in the installed transformers → whether its package is installed."""
    source = (_folder("transformers") / "integrations" / "integration_utils.py").read_text(encoding="utf-8")
    names = [
        key.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INTEGRATION_TO_CALLBACK"
        for key in node.value.keys
    ]
    return {name: any(map(importlib.util.find_spec, _PACKAGES.get(name, [name]))) for name in names}


@functools.cache
def training_arguments() -> dict[str, TypeAdapter]:
    """Return the fields of the installed `TrainingArguments` that are not refused → their types."""
    enums = {
        name: Literal[_enum_values(node)]
        for file in ("training_args.py", "trainer_utils.py", "debug_utils.py")
        for name, node in _classes("transformers", file).items()
        if any(isinstance(base, ast.Name) and base.id == "ExplicitEnum" for base in node.bases)
    }
    enums["LogLevel"] = Literal["debug", "info", "warning", "error", "critical", "passive"]
    known = {}
    for name, annotation, _ in annotated_fields("transformers", "training_args.py", "TrainingArguments"):
        if name in ("log_level", "log_level_replica"):
            annotation = "LogLevel"  # annotated as a plain `str`
        try:
            known[name] = key_type(annotation, enums, _LIMITS.get(name))
        except TypeError:  # from a newer transformers: the trial step before a run finds values that do not fit
            known[name] = TypeAdapter(Any)
    return {name: kind for name, kind in known.items() if name not in REFUSED}
