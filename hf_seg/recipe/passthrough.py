"""What a recipe may pass on to transformers, read from the installed package's source without importing it.

Importing transformers' `TrainingArguments` takes seconds and pulls in torch, and building one with `bf16` raises on a
machine without a GPU. Its source says names and types just as well, so a recipe can be checked anywhere, instantly.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from pathlib import Path
from typing import Any

from hf_seg.recipe.schema import fragment

_LAUNCHER = (
    "how a run is spread over machines belongs to the launcher's file (accelerate config); a recipe says the science"
)
_BATCH = "the per-device batch is worked out from the ranks; set global_train_batch_size"
_EVALUATE = "validation and checkpoints come every eval_every_epochs; set that"
_BEST = "the checkpoint with the best validation mIoU is kept, as in the study"
_ADAMW = "the optimiser is AdamW by protocol; learning_rate, weight_decay, amsgrad and adam_* are yours to set"
_METRIC = "the metric is summed up batch by batch on the device, nothing is gathered"
_RESUME = "an interrupted run resumes by itself when the same command is given again"
_PHASES = "every run trains, validates and tests"
_TEXT = "it is made for text models and does nothing for images"
_PRECISION = "scores are taken at the precision of training; set bf16"
_GONE = "transformers 5 has no such argument"

# Refused keys of the training section, and why. With names that transformers has dropped: people remember them.
REFUSED: dict[str, str] = {
    "output_dir": "a run's folder is named after its recipe file; rename the file",
    "remove_unused_columns": "the columns image and mask are needed by the transform, so it is always false",
    "label_names": "the labels are always the transformed masks",
    **dict.fromkeys(["per_device_train_batch_size", "auto_find_batch_size", "per_gpu_train_batch_size"], _BATCH),
    **dict.fromkeys(["do_train", "do_eval", "do_predict"], _PHASES),
    **dict.fromkeys(["eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"], _EVALUATE),
    **dict.fromkeys(["evaluation_strategy", "evaluate_during_training"], f"{_GONE}; {_EVALUATE}"),
    **dict.fromkeys(["load_best_model_at_end", "metric_for_best_model", "greater_is_better"], _BEST),
    **dict.fromkeys(["optim", "optim_args", "optim_target_modules", "adafactor"], _ADAMW),
    **dict.fromkeys(
        [
            "batch_eval_metrics",
            "prediction_loss_only",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "eval_accumulation_steps",
            "include_for_metrics",
            "include_inputs_for_metrics",
        ],
        _METRIC,
    ),
    "label_smoothing_factor": "Trainer's label smoothing fails on 4-dimensional logits; leave it out",
    "fp16": "half precision with loss scaling is not supported; set bf16",
    "bf16_full_eval": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "save_only_model": "checkpoints keep the optimiser's state, or an interrupted run could not resume",
    "enable_jit_checkpoint": "hf_seg itself saves and stops at SIGTERM, and two handlers collide; leave it out",
    "data_seed": "one seed governs weights, shuffling and augmentation; set seed",
    **dict.fromkeys(
        [
            "resume_from_checkpoint",
            "ignore_data_skip",
            "restore_callback_states_from_checkpoint",
        ],
        _RESUME,
    ),
    "mean_iou_script": "a recipe names no code; add --mean_iou_script FILE to the command",
    "overwrite_output_dir": f"{_GONE}; to train a finished run again, add --overwrite to the command",
    "logging_dir": f"{_GONE}; TensorBoard's files go into the run's folder",
    "warmup_ratio": f"{_GONE}; set warmup_steps below 1 for a share of all steps",
    "no_cuda": f"{_GONE}; set use_cpu",
    "push_to_hub_model_id": f"{_GONE}; set hub_model_id",
    "save_safetensors": f"{_GONE}; weights are always saved as safetensors",
    **dict.fromkeys(
        ["hub_token", "push_to_hub_token"], "secrets never go into a recipe; run `hf auth login` or set HF_TOKEN"
    ),
    **dict.fromkeys(
        [
            "average_tokens_across_devices",
            "include_num_input_tokens_seen",
            "include_tokens_per_second",
            "use_liger_kernel",
            "liger_kernel_config",
            "use_cache",
            "neftune_noise_alpha",
            "train_sampling_strategy",
            "length_column_name",
            "group_by_length",
        ],
        _TEXT,
    ),
    "gradient_checkpointing": "transformers has renamed it; set activation_checkpointing",
    "gradient_checkpointing_kwargs": "transformers has renamed it; set activation_checkpointing_kwargs",
    **dict.fromkeys(
        ["deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config", "local_rank"], _LAUNCHER
    ),
    "ddp_backend": _LAUNCHER,
    "ddp_timeout": "how long processes wait for each other is up to the machines; set the variable HF_SEG_TIMEOUT",
    **dict.fromkeys(["split_batches", "dispatch_batches"], f"{_GONE}; {_LAUNCHER}"),
    # What people write who come from another trainer.
    **dict.fromkeys(["batch_size", "train_batch_size"], "set global_train_batch_size"),
    **dict.fromkeys(["lr"], "set learning_rate"),
    **dict.fromkeys(["epochs", "num_epochs", "max_epochs"], "set num_train_epochs"),
    **dict.fromkeys(["optimizer", "optimiser"], _ADAMW),
}

# Values that transformers would refuse only after the data is loaded, or that fail later still.
_LOG_LEVELS = ["debug", "info", "warning", "error", "critical", "passive"]
_LIMITS: dict[str, dict[str, Any]] = {
    "warmup_steps": {"minimum": 0},
    "adam_beta1": {"minimum": 0, "exclusiveMaximum": 1},
    "adam_beta2": {"minimum": 0, "exclusiveMaximum": 1},
    "adam_epsilon": {"minimum": 0},
    "logging_steps": {"exclusiveMinimum": 0},
    "per_device_eval_batch_size": {"minimum": 1},
    "save_total_limit": {"minimum": 1},
    "dataloader_num_workers": {"minimum": 0},
    "dataloader_prefetch_factor": {"minimum": 1},
    "torch_empty_cache_steps": {"minimum": 1},
    "log_level": {"enum": _LOG_LEVELS},
    "log_level_replica": {"enum": _LOG_LEVELS},
}


@functools.cache
def _folder(package: str) -> Path:
    if package == "hf_seg":
        return Path(__file__).parents[1]
    spec = importlib.util.find_spec(package)  # of a top-level package: finds, does not import
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed; run pip install -e . in hf_seg's folder", name=package)
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _classes(package: str, file: str) -> dict[str, ast.ClassDef]:
    source = (_folder(package) / file).read_text(encoding="utf-8")
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}


def _enum_values(node: ast.ClassDef) -> list[str]:
    return [
        item.value.value for item in node.body if isinstance(item, ast.Assign) and isinstance(item.value, ast.Constant)
    ]


# Trackers that are not called like the package that they take; kubeflow takes none.
_PACKAGES = {
    "azure_ml": ["azureml"],
    "flyte": ["flytekit"],
    "kubeflow": ["transformers"],
    "tensorboard": ["tensorboard", "tensorboardX"],
}


@functools.cache
def scheduler_types() -> tuple[str, ...]:
    """The values of transformers' `SchedulerType`, e.g. `"linear"`."""
    return tuple(_enum_values(_classes("transformers", "trainer_utils.py")["SchedulerType"]))


def trackers() -> dict[str, bool]:
    """The names that `report_to` takes in the installed transformers, and whether the package of each is installed."""
    source = (_folder("transformers") / "integrations" / "integration_utils.py").read_text(encoding="utf-8")
    names = [
        key.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INTEGRATION_TO_CALLBACK"
        for key in node.value.keys
    ]
    return {name: any(map(importlib.util.find_spec, _PACKAGES.get(name, [name]))) for name in names}


def training_arguments() -> dict[str, dict[str, Any]]:
    """The fields of the installed `TrainingArguments` that are not refused: name → JSON Schema of its type."""
    return _training_arguments()[0]


def unreadable_arguments() -> dict[str, str]:
    """Those whose type hf_seg does not understand, and why. None in the transformers that hf_seg is tested with."""
    return _training_arguments()[1]


@functools.cache
def _training_arguments() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    enums = {}
    for file in ("training_args.py", "trainer_utils.py", "debug_utils.py"):
        for name, node in _classes("transformers", file).items():
            if any(isinstance(base, ast.Name) and base.id == "ExplicitEnum" for base in node.bases):
                enums[name] = _enum_values(node)
    known, unreadable = {}, {}
    for item in _classes("transformers", "training_args.py")["TrainingArguments"].body:
        if isinstance(item, ast.AnnAssign) and item.target.id not in REFUSED:
            name = item.target.id
            try:
                known[name] = fragment(ast.unparse(item.annotation), enums) | _LIMITS.get(name, {})
            except TypeError as error:
                # A newer transformers must not spoil the recipes that do not use its new argument.
                unreadable[name] = str(error)
    return known, unreadable


# Where the class of each architecture's configuration is.
_CONFIGS = {
    "fcn": ("hf_seg", "models/configuration_fcn.py", "FCNConfig"),
    "segformer": ("transformers", "models/segformer/configuration_segformer.py", "SegformerConfig"),
}
_OF_THE_DATA = "it follows from the data set; leave it out"
# Refused keys of model.config, and why.
REFUSED_CONFIG: dict[str, str] = {
    "encoder": "it has a key of its own; set model.encoder",
    "num_channels": "images are RGB; leave it out",
    **dict.fromkeys(["num_labels", "id2label", "label2id", "semantic_loss_ignore_index"], _OF_THE_DATA),
}


@functools.cache
def config_fields(arch: str) -> dict[str, tuple[dict[str, Any], Any]]:
    """The fields of an architecture's configuration class that a recipe may set.

    Args:
        arch (`str`): `"fcn"` or `"segformer"`.

    Returns:
        `dict`: name → (JSON Schema fragment of its type, default).
    """
    package, file, name = _CONFIGS[arch]
    return {
        item.target.id: (fragment(ast.unparse(item.annotation)), ast.literal_eval(item.value))
        for item in _classes(package, file)[name].body
        if isinstance(item, ast.AnnAssign) and item.value is not None and item.target.id not in REFUSED_CONFIG
    }
