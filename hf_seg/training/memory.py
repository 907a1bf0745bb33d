"""The most memory that a run takes, of the GPU or else of the process, and what to do when it does not suffice."""

import contextlib
import re
from pathlib import Path

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import TrainingArguments

from hf_seg.problem import Refusal

PROCESS = Path("/proc/self")  # Linux


def reset_peak_memory(device: torch.device) -> None:
    """Forget what was taken before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the high-water mark VmHWM


def peak_memory(device: torch.device) -> float | None:
    """Megabytes (10⁶ bytes) since [`reset_peak_memory`], loaded libraries included; None where nobody counts.

    On a GPU: what PyTorch has allocated there, without its cache and CUDA itself.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        return int(re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text())[1]) * 1024 / 1e6
    except (OSError, TypeError):
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the machine, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def explain_training(args: TrainingArguments, image_size: int) -> Refusal:
    """What to do when the memory does not suffice for a step of training."""
    images, parts = args.per_device_train_batch_size, args.gradient_accumulation_steps
    more = [count for count in range(2 * parts, images * parts + 1) if images * parts % count == 0]
    remedy = (
        f"set training.gradient_accumulation_steps to {more[0]}, and it is {images * parts // more[0]} at a time"
        if more
        else ""
    )
    return _explain(args, "training", images, image_size, remedy)


def explain_evaluation(args: TrainingArguments, image_size: int) -> Refusal:
    """What to do when the memory does not suffice for the evaluation of a batch."""
    images = args.per_device_eval_batch_size
    remedy = f"set training.per_device_eval_batch_size to {images // 2}" if images > 1 else ""
    return _explain(args, "evaluation", images, image_size, remedy)


def _explain(args: TrainingArguments, step: str, images: int, image_size: int, remedy: str) -> Refusal:
    pixels = f"{images} images of {image_size}×{image_size} pixels at a time"
    remedy = f"{remedy or 'use a device with more memory'}, or lower data.image_size"
    return Refusal("", f"{args.device} is out of memory in {step}, with {pixels}", remedy, code="out-of-memory")
