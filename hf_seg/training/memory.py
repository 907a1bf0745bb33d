"""The peak memory of a run, on the GPU or else of the process, and what to do when memory runs out."""

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
    """Start to measure the peak memory again."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the high-water mark VmHWM


def peak_memory(device: torch.device) -> float | None:
    """Return the peak memory since [`reset_peak_memory`] in megabytes (10⁶ bytes).

    On a GPU, this is what PyTorch has allocated there, without its cache and CUDA itself. Otherwise it is the memory
    of the process, loaded libraries included; None where the system does not report it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        return int(re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text())[1]) * 1024 / 1e6
    except (OSError, TypeError):
        return None


@contextlib.contextmanager
def explained(args: TrainingArguments, size: tuple[int, int], step: Step) -> Iterator[None]:
    """Turn an out-of-memory error in the block into a refusal that says what to do; see [`explain`]."""
    try:
        yield
    except RuntimeError as error:
        if should_reduce_batch_size(error):
            raise explain(args, size, step) from error
        raise


def explain(args: TrainingArguments, size: tuple[int, int], step: Step) -> Refusal:
    """Build the refusal that says what to do when memory runs out in a step on inputs of `size` (height, width)."""
    remedy = "use a device with more memory"
    if step == "training":
        images, parts = args.per_device_train_batch_size, args.gradient_accumulation_steps
        together = images * parts
        if more := [count for count in range(2 * parts, together + 1) if together % count == 0]:
            at_a_time = together // more[0]
            remedy = f"set training.gradient_accumulation_steps to {more[0]}, for {at_a_time} at a time"
    else:
        images = args.per_device_eval_batch_size
        if images > 1:
            remedy = f"set training.per_device_eval_batch_size to {images // 2}"
    pixels = f"{images} images of {size[1]}×{size[0]} pixels at a time"
    what = f"{args.device} is out of memory in {step}, with {pixels}"
    return Refusal("", what, f"{remedy}, or lower data.image_size", code="out-of-memory")
