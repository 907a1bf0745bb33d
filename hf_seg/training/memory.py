"""The most memory that a run takes, of the GPU or else of the process, and what to do when it does not suffice."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import TrainingArguments

from hf_seg.problem import Refusal

PROCESS = Path("/proc/self")  # Linux
Step = Literal["training", "evaluation"]


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


@contextlib.contextmanager
def explained(args: TrainingArguments, size: tuple[int, int], step: Step) -> Iterator[None]:
    """Say what to do when the memory does not suffice in the block."""
    try:
        yield
    except RuntimeError as error:
        if should_reduce_batch_size(error):
            raise explain(args, size, step) from error
        raise


def explain(args: TrainingArguments, size: tuple[int, int], step: Step) -> Refusal:
    """What to do when the memory does not suffice for a step."""
    remedy = "use a device with more memory"
    if step == "training":
        images, parts = args.per_device_train_batch_size, args.gradient_accumulation_steps
        together = images * parts
        if more := [count for count in range(2 * parts, together + 1) if together % count == 0]:
            at_a_time = together // more[0]
            remedy = f"set training.gradient_accumulation_steps to {more[0]}, and it is {at_a_time} at a time"
    else:
        images = args.per_device_eval_batch_size
        if images > 1:
            remedy = f"set training.per_device_eval_batch_size to {images // 2}"
    pixels = f"{images} images of {size[1]}×{size[0]} pixels at a time"
    what = f"{args.device} is out of memory in {step}, with {pixels}"
    return Refusal("", what, f"{remedy}, or lower data.image_size", code="out-of-memory")
