"""From a recipe's training section to `TrainingArguments`, for the device and the ranks of this launch."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainingArguments

from hf_seg.recipe import Recipe, RecipeError, TrainingRecipe

# Arguments of the Trainer that hf_seg.push does the work of: the Trainer's own pushes can end a training.
PUSH = {"hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"}
T = TypeVar("T")


def per_device_batch_size(training: TrainingRecipe, num_processes: int) -> int:
    """The global batch, divided by ranks × accumulation steps.

    Raises:
        RecipeError: when it does not divide, with the counts that do.
    """
    batch, parts = training.global_train_batch_size, num_processes * training.gradient_accumulation_steps
    if batch % parts:
        counts = ", ".join(str(n) for n in range(1, batch + 1) if batch % (n * num_processes) == 0)
        remedy = (
            f"gradient_accumulation_steps that do: {counts}"
            if counts
            else "number of processes that does: " + ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        )
        raise RecipeError(
            f"training.global_train_batch_size: {batch} does not divide by {num_processes} processes × "
            f"{training.gradient_accumulation_steps} accumulation steps; {remedy}"
        )
    return batch // parts


def start_processes() -> PartialState:
    """Join the ranks of this launch, and on a CPU let this machine's ranks share all physical cores.

    Raises:
        RecipeError: when several processes were asked for and one was started.
    """
    environment = os.environ
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}
    # accelerate 1.15 sets the address of a rendezvous that nobody comes to, and starts one process, without a word
    if on_cpu and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= {*environment} and not ranks & {*environment}:
        raise RecipeError(
            "accelerate launch was asked for several processes, but on a CPU it starts only one; start them with "
            "`accelerate launch --config_file recipes/accelerate/cpu.yaml --num_processes N hf_seg/train.py …`, or "
            "run a single process with --num_processes 1"
        )
    state = PartialState(cpu=on_cpu)
    # `accelerate launch` without `--cpu` sets OMP_NUM_THREADS=1, also where there is no GPU: training would run on one
    # core. So does torchrun. Any other value is the user's and stays.
    if on_cpu and environment.get("OMP_NUM_THREADS", "1") == "1":
        cores = torch.cpu.get_capabilities().get("num_physical_cores") or os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cores = min(cores, len(os.sched_getaffinity(0)))
        torch.set_num_threads(max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", 1))))
    return state


def on_main_process(action: Callable[[], T]) -> T | None:
    """Let the main process do what is to be done once. Returns what it made there, None on the others.

    Raises:
        Exception: on every rank, what the action raised on the main process: none waits for another in vain.
    """
    state, result, error = PartialState(), None, None
    if state.is_main_process:
        try:
            result = action()
        except Exception as raised:
            error = raised
    (error,) = broadcast_object_list([error])
    if error is not None:
        raise error
    return result


def check_agreement(name: str, fingerprint: str) -> None:
    """Refuse ranks that do not see the same data, as two machines with other files under the same path.

    Args:
        name (`str`): of the run, for the message.
        fingerprint (`str`): of this rank's data.

    Raises:
        RecipeError: on every rank, with the fingerprints.
    """
    seen = gather_object([fingerprint])
    others = [f"rank {rank} sees {other}" for rank, other in enumerate(seen) if other != seen[0]]
    if others:
        raise RecipeError(
            f"{name}: the processes see different data: by fingerprint, rank 0 sees {seen[0]}, "
            f"{', '.join(others[:4])}; put the same files on all machines, under data.root or $HF_SEG_DATA"
        )


def use_bf16(training: TrainingRecipe, device: torch.device) -> bool:
    """`training.bf16`; `"auto"`: where the device computes bf16 in hardware (elsewhere it would be slower)."""
    if training.bf16 != "auto":
        return training.bf16
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def use_channels_last(training: TrainingRecipe, device: torch.device) -> bool:
    """`training.channels_last`, with `"auto"` meaning: where convolutions gain by it."""
    return device.type in ("cpu", "cuda") if training.channels_last == "auto" else training.channels_last


def build_training_arguments(recipe: Recipe, run_dir: Path) -> TrainingArguments:
    """`TrainingArguments` for a recipe on this launch's device and number of ranks.

    Raises:
        RecipeError: when the global batch does not divide, or several GPUs are visible to one process.
    """
    training, state = recipe.training, PartialState()
    # Reading a batch from the cache takes less than handing it over from another process would. Decoding takes long,
    # but on a CPU workers would take the cores from the training.
    decodes = recipe.data.cache is False and state.device.type != "cpu"
    workers = training.arguments.get("dataloader_num_workers", min(8, (os.cpu_count() or 1) // 2) if decodes else 0)
    arguments: dict[str, Any] = {
        "logging_strategy": "epoch",
        "logging_nan_inf_filter": False,  # the filter would report the mean of the other steps for a NaN loss
        "save_total_limit": 2,
        "per_device_eval_batch_size": 64,
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        "ddp_find_unused_parameters": False,  # every trainable parameter of both models takes part in every step
        "dataloader_pin_memory": state.device.type == "cuda",
    } | {key: value for key, value in training.arguments.items() if key not in PUSH}
    report_to = training.report_to
    if report_to == "auto":
        report_to = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    args = TrainingArguments(
        output_dir=str(run_dir),
        num_train_epochs=training.num_train_epochs,
        per_device_train_batch_size=per_device_batch_size(training, state.num_processes),
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type="constant" if training.lr_scheduler_type == "exponential" else training.lr_scheduler_type,
        seed=training.seed,
        bf16=use_bf16(training, state.device),
        use_cpu=arguments.pop("use_cpu", False) or state.device.type == "cpu",
        report_to=report_to,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="mean_iou",
        greater_is_better=True,
        batch_eval_metrics=True,
        remove_unused_columns=False,
        label_names=["labels"],
        **arguments,
    )
    if args.n_gpu > 1:
        raise RecipeError(
            f"{args.n_gpu} GPUs are visible to a single process, which would divide each batch in its own way; "
            "start the program with `accelerate launch`, or choose one GPU by CUDA_VISIBLE_DEVICES"
        )
    return args


def explain_memory(args: TrainingArguments, training: TrainingRecipe, shape: torch.Size) -> str:
    """What to do when a device has not the memory for a batch of `pixel_values` of a shape."""
    parts = training.gradient_accumulation_steps
    more = [n for n in range(parts + 1, shape[0] * parts + 1) if shape[0] * parts % n == 0]
    remedy = (
        f"set training.gradient_accumulation_steps to {more[0]}, which halves what is there at a time or more"
        if more
        else "use a device with more memory"
    )
    return (
        f"{args.output_dir}: {args.device} has not the memory for {shape[0]} images of {shape[-2]}×{shape[-1]} pixels "
        f"at a time; {remedy}, or lower data.image_size"
    )
