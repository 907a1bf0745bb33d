"""What of this machine and its Python would hurt a run. Only the standard library is needed to say so."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from hf_seg.problem import Level, Problem

PCI_DEVICES = Path("/sys/bus/pci/devices")
SHARED_MEMORY = Path("/dev/shm")
NVIDIA, DISPLAY = "0x10de", "0x03"  # vendor; first byte of the class


def check_packages() -> list[Problem]:
    """Look for packages that are missing, too old, or do not fit each other.

    Returns:
        `list[Problem]`: an error means that hf_seg cannot train, and may not even be able to look at data.
    """
    return [*_requirements(), *_torchvision()]


def _requirements() -> Iterator[Problem]:
    for requirement in metadata.requires("hf_seg") or ():
        name, floor = re.fullmatch(r"([\w.-]+)(?:>=([\w.]+))?.*", requirement.replace(" ", "")).groups()
        if "extra==" in requirement.replace(" ", ""):
            continue
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield _finding("error", "missing-package", name, "is not installed", f"pip install '{requirement}'")
            continue
        if floor and _numbers(version) < _numbers(floor):
            what = f"is version {version}; hf_seg was tested with {floor} and later"
            yield _finding("warning", "old-package", name, what, f"pip install '{requirement}'")


def _numbers(version: str) -> tuple[int, ...]:
    """`2.15.0rc1+cu132` → (2, 15, 0): enough to compare with a floor."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", version)[0].split("."))


def _torchvision() -> Iterator[Problem]:
    # A torchvision that was built for another torch fails when its operators are used or registered, and transformers
    # then says "Could not import module 'SegformerForSemanticSegmentation'".
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0, 0.5]), 0.5)
    except Exception as error:
        versions = {name: metadata.version(name) for name in ("torch", "torchvision")}
        needs = [line for line in metadata.requires("torchvision") or () if re.match(r"torch\b(?!vision)", line)]
        what = (
            f"torchvision {versions['torchvision']} does not work with torch {versions['torch']} "
            f"({type(error).__name__}: {error}); its package asks for {', '.join(needs) or 'no torch'}"
        )
        remedy = (
            "Install both together, from the same index: pip install --upgrade --force-reinstall torch torchvision"
        )
        yield _finding("error", "torch-torchvision", "torchvision", what, remedy)


def check_gpu() -> list[Problem]:
    """Look for an NVIDIA GPU that training would not use."""
    import torch

    if torch.accelerator.is_available() or not _has_nvidia_gpu():
        return []
    if torch.version.cuda is None:
        what = f"torch {torch.__version__} is built without CUDA, and this machine has an NVIDIA GPU"
        remedy = "Install a CUDA build, as https://pytorch.org says; training on the CPU takes many times as long."
    else:
        what = f"torch {torch.__version__} cannot use the NVIDIA GPU of this machine{_reason()}"
        remedy = "`nvidia-smi` must list it: install or update the driver; a container must be started with the GPU."
    return [_finding("warning", "unused-gpu", "torch", what, remedy)]


def _has_nvidia_gpu() -> bool:
    for device in PCI_DEVICES.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == NVIDIA and kind.startswith(DISPLAY):
            return True
    return False


def _reason() -> str:
    import torch

    try:
        torch.cuda.init()
    except Exception as error:
        return f" ({str(error).splitlines()[0]})"
    return ""


def check_folder(folder: Path, needed: int, what: str) -> list[Problem]:
    """Whether a folder can be written to, and has enough disk space.

    Args:
        folder (`Path`): it need not exist yet.
        needed (`int`): bytes.
        what (`str`): what will be kept there.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not os.access(existing, os.W_OK):
        remedy = "Make it writable, or set HF_HOME to a folder that is; else it is made again in each run."
        return [
            _finding("warning", "unwritable-folder", str(folder), f"cannot be written to, and is for {what}", remedy)
        ]
    free = shutil.disk_usage(existing).free
    if free < needed:
        sizes = f"has {free / 1e9:.1f} GB free, and {what} need about {needed / 1e9:.1f} GB"
        return [_finding("warning", "full-disk", str(folder), sizes, "Free disk space, or name another folder.")]
    return []


def check_shared_memory(workers: int, batch_bytes: int) -> list[Problem]:
    """Whether the data loader's workers can hand over their batches.

    Args:
        workers (`int`): processes.
        batch_bytes (`int`): size of a batch; each worker keeps two ready.
    """
    needed = 2 * workers * batch_bytes
    if not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free >= needed:
        return []
    free = shutil.disk_usage(SHARED_MEMORY).free
    what = f"has {free / 1e6:.0f} MB free, and {workers} data loader workers need {needed / 1e6:.0f} MB: they crash"
    remedy = "Start the container with a larger --shm-size, or set training.dataloader_num_workers to 0."
    return [_finding("warning", "small-shared-memory", str(SHARED_MEMORY), what, remedy)]


def _finding(level: Level, code: str, file: str, what: str, remedy: str) -> Problem:
    return Problem(level=level, code=code, place=file, what=what, remedy=remedy)
