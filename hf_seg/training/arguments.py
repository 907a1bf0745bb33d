"""Turn a recipe's training section into `TrainingArguments` and a loss, for this launch's device and ranks."""

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import PartialState
from transformers import TrainingArguments

from hf_seg.data import SegData
from hf_seg.data.prepared import default_workers
from hf_seg.problem import RecipeError, Refusal
from hf_seg.recipe.keys import TrainingRecipe, loss_parts
from hf_seg.runs.folder import Run
from hf_seg.runs.record import PUSH
from hf_seg.scoring.loss import SegLoss, balanced_weights

# recipe keys that have the same name and meaning in `TrainingArguments`
SAME = "num_train_epochs gradient_accumulation_steps learning_rate weight_decay max_grad_norm seed".split()
EVAL_LOGITS = 2**23  # in a batch, 4 bytes each; an evaluation takes about five times that memory


def per_device_batch_size(training: TrainingRecipe, num_processes: int) -> int:
    """Return the global batch size, divided by ranks × accumulation steps.

    Raises:
        RecipeError: when it is not divisible; the message names the counts that would work.
    """
    batch, steps = training.global_train_batch_size, training.gradient_accumulation_steps
    if batch % (num_processes * steps):
        name, good = "gradient_accumulation_steps that work", _divisors(batch, num_processes)
        if not good:
            name, good = "numbers of processes that work", _divisors(batch, 1)
        raise RecipeError(
            "training.global_train_batch_size",
            f"{batch} cannot be divided by {num_processes} processes × {steps} accumulation steps",
            f"{name}: {', '.join(map(str, good))}",
        )
    return batch // (num_processes * steps)


def count_steps(training: TrainingRecipe, pairs: int) -> int:
    """Return the number of steps of a whole training on that many pairs."""
    steps = training.arguments.get("max_steps", -1)
    return steps if steps > 0 else training.num_train_epochs * steps_per_epoch(training, pairs)


def steps_per_epoch(training: TrainingRecipe, pairs: int) -> int:
    """Return the number of steps of an epoch on that many pairs; the last one may have fewer images."""
    return math.ceil(pairs_per_epoch(training, pairs) / training.global_train_batch_size)


def pairs_per_epoch(training: TrainingRecipe, pairs: int) -> int:
    """Return how many of the pairs an epoch has: those of whole global batches with `dataloader_drop_last`, else all.

    `Trainer` would drop what does not fill a part of a batch, and so other images for other accumulation steps.
    """
    drops = training.arguments.get("dataloader_drop_last")
    return pairs - pairs % training.global_train_batch_size if drops else pairs


def _divisors(batch: int, parts: int) -> list[int]:
    return [count for count in range(1, batch + 1) if batch % (count * parts) == 0]


@contextmanager
def overridden(args: TrainingArguments, key: str, value: Any) -> Iterator[None]:
    """Give one of the arguments another value while the block runs."""
    before = getattr(args, key)
    setattr(args, key, value)
    try:
        yield
    finally:
        setattr(args, key, before)


def precision_of(training: TrainingRecipe, device: torch.device) -> Literal["bf16", "fp16", "fp32"]:
    """Return the precision to compute in, by `training.bf16` and `training.fp16`. `"auto"` chooses what the hardware
    supports (anything else would be slower): bf16; or fp16 on a GPU that lacks bf16, such as a T4.

    Raises:
        RecipeError: when fp16 is asked for without a GPU.
    """
    if training.fp16 is True:
        if device.type != "cuda":
            what = f"loss scaling needs a GPU, but this launch computes on {device.type}"
            raise RecipeError("training.fp16", what, 'set it to "auto" or false')
        return "fp16"
    if training.bf16 is True or (training.bf16 == "auto" and _has_bf16(device)):
        return "bf16"
    return "fp16" if device.type == "cuda" and training.bf16 == training.fp16 == "auto" else "fp32"


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def use_channels_last(training: TrainingRecipe, device: torch.device) -> bool:
    """Whether to use channels_last: `training.channels_last`; `"auto"` means on CPU and CUDA, where it is faster."""
    return device.type in ("cpu", "cuda") if training.channels_last == "auto" else training.channels_last


def use_sync_batch_norm(training: TrainingRecipe, num_processes: int, device: torch.device) -> bool:
    """Whether to synchronise batch norm: `training.sync_batch_norm`; `"auto"` means with several ranks on GPUs, when
    each has fewer than 16 images at a time.

    Wu and He, "Group Normalization", ECCV 2018 (figure 1), find that batch norm loses accuracy below about 16 images.

    Raises:
        RecipeError: when it is asked for with several processes that do not compute on GPUs.
    """
    if training.sync_batch_norm is True and num_processes > 1 and device.type != "cuda":
        what = f"PyTorch supports it only on GPUs, but this launch has {num_processes} processes on {device.type}"
        raise RecipeError("training.sync_batch_norm", what, 'set it to "auto" or false')
    wanted = training.sync_batch_norm
    if wanted == "auto":
        wanted = device.type == "cuda" and per_device_batch_size(training, num_processes) < 16
    return wanted and num_processes > 1


def refuse_sharding(training: TrainingRecipe, sharded: bool) -> None:
    """Refuse keys that are not tested with FSDP and DeepSpeed, which divide a model over the ranks."""
    default = TrainingRecipe()
    for key in ("ema_decay", "encoder_lr_multiplier", "layer_lr_decay"):
        if sharded and getattr(training, key) != getattr(default, key):
            remedy = "leave it out, or launch without them"
            raise RecipeError(f"training.{key}", "is not tested with FSDP and DeepSpeed", remedy)


def use_cuda_graphs(training: TrainingRecipe, num_processes: int, device: torch.device) -> bool:
    """Whether to use CUDA graphs: `training.cuda_graphs`; `"auto"` means off until their gain is measured.

    Raises:
        RecipeError: when they are asked for without a GPU, or with several processes.
    """
    if training.cuda_graphs is True and (device.type != "cuda" or num_processes > 1):
        here = f"computes on {device.type}" if device.type != "cuda" else f"has {num_processes} processes"
        what = f"they need one GPU and one process, but this launch {here}"
        raise RecipeError("training.cuda_graphs", what, 'set it to "auto" or false')
    return training.cuda_graphs is True


def eval_batch_size(train_batch: int, num_classes: int, size: tuple[int, int]) -> int:
    """Images evaluated at a time: as many as have 32 MiB of logits at `size`, at least `train_batch`, at most 64."""
    # a training batch fits into memory, since training also keeps what the gradient needs
    return min(64, max(train_batch, EVAL_LOGITS // (num_classes * math.prod(size))))


def checkpoints_kept(training: TrainingRecipe) -> int:
    """How many checkpoints are kept at most: `save_total_limit`; with null all, with 1 the newest and the best."""
    limit = training.arguments.get("save_total_limit", 2)
    return math.ceil(training.num_train_epochs / training.eval_every_epochs) if limit is None else max(2, limit)


def build_loss(training: TrainingRecipe, data: SegData, device: torch.device) -> SegLoss:
    """Build the loss of a recipe. `"balanced"` class weights come from the prepared masks of the training split.

    Raises:
        RecipeError: when there are more or fewer weights than classes.
    """
    weights, classes = training.class_weights, data.spec.num_labels
    if weights == "balanced":
        weights = balanced_weights(data.prepared["train"].count_labels()[:classes])
    elif weights is not None and len(weights) != classes:
        what = f"has {len(weights)} weights, but the data has {classes} classes: {', '.join(data.spec.class_names)}"
        raise RecipeError("training.class_weights", what, "give one weight for each class, in this order")
    return SegLoss(
        loss_parts(training.loss),
        class_weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device),
        label_smoothing=training.label_smoothing,
        ignore_index=data.spec.ignore_index,
    )


def build_training_arguments(run: Run, num_classes: int, decodes: bool = False) -> TrainingArguments:
    """Build `TrainingArguments` for a run's recipe on this launch's device and number of ranks.

    Args:
        num_classes (`int`): number of classes of the data.
        decodes (`bool`): whether pictures are decoded each time they are read.

    Raises:
        Refusal: when the global batch is not divisible, when fp16 is asked for without a GPU, or when several GPUs are
            visible to one process.
    """
    recipe, training, state = run.recipe, run.recipe.training, PartialState()
    train_batch, precision = per_device_batch_size(training, state.num_processes), precision_of(training, state.device)
    # reading a batch from the cache is faster than passing it on from a worker process
    wanted = default_workers(state.device.type != "cpu") if decodes else 0
    workers, crops = training.arguments.get("dataloader_num_workers", wanted), recipe.data.resize == "crop"
    arguments: dict[str, Any] = {
        "logging_strategy": "epoch",
        "logging_nan_inf_filter": False,  # the filter would report the mean of the other steps for a NaN loss
        "save_total_limit": 2,
        "run_name": recipe.name,  # the name in trackers
        # then whole pictures of different sizes are evaluated, which cannot be in one batch
        "per_device_eval_batch_size": 1 if crops else eval_batch_size(train_batch, num_classes, recipe.data.size),
        "dataloader_num_workers": workers,
        # persistent workers keep the data set that they started with, but crops are drawn again each epoch
        "dataloader_persistent_workers": workers > 0 and not crops,
        # the search takes time in each step; without it, such parameters end training at its second step
        "ddp_find_unused_parameters": run.without_gradient is None or len(run.without_gradient) > 0,
        # the pinning thread must not call CUDA while a graph is captured
        "dataloader_pin_memory": state.device.type == "cuda" and training.cuda_graphs is not True,
    } | {key: value for key, value in training.arguments.items() if key not in PUSH}
    if training.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):  # by the mean IoU
        arguments["lr_scheduler_kwargs"] = {"mode": "max"} | (arguments.get("lr_scheduler_kwargs") or {})
    if training.compile is True:
        arguments = {"torch_compile": True, "torch_compile_mode": "reduce-overhead"} | arguments
    report_to = training.report_to
    if report_to == "auto":  # not trackio, which sends the account's token to the Hub to look up the account's name
        report_to = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    args = TrainingArguments(
        output_dir=str(run.folder),
        per_device_train_batch_size=train_batch,
        lr_scheduler_type="constant" if training.lr_scheduler_type == "exponential" else training.lr_scheduler_type,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=state.device.type == "cpu",
        report_to=report_to,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="mean_iou",
        greater_is_better=True,
        batch_eval_metrics=True,
        remove_unused_columns=False,
        label_names=["labels"],
        **{key: getattr(training, key) for key in SAME},
        **arguments,
    )
    if args.n_gpu > 1:
        what = f"{args.n_gpu} GPUs are visible to a single process, which would split each batch over them"
        remedy = f"use `hf-seg train … --num_processes {args.n_gpu}`, or choose one GPU with CUDA_VISIBLE_DEVICES"
        raise Refusal("CUDA_VISIBLE_DEVICES", what, remedy, code="processes")
    return args
