"""The most memory that a run takes: of the GPU, or of the process where there is none."""

import contextlib
import re
from pathlib import Path

import torch

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
