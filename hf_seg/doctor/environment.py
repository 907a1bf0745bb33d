"""Find problems of this machine and its Python packages. Importing this module needs no torch, which may be broken."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from hf_seg.problem import Problem

PCI_DEVICES = Path("/sys/bus/pci/devices")
SHARED_MEMORY = Path("/dev/shm")
NVIDIA, DISPLAY = "0x10de", "0x03"  # PCI vendor; first byte of the PCI class


def check_packages() -> list[Problem]:
    """Find packages that are missing, too old or incompatible. After an error, not even the data can be examined."""
    return [*_requirements(), *_torchvision()]


def _requirements() -> Iterator[Problem]:
    for requirement in map(Requirement, metadata.requires("hf_seg") or ()):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, requirement.specifier
        remedy = f"pip install '{name}{wanted}'"
        try:
            version = Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Problem(code="missing-package", place=name, what="is not installed", remedy=remedy)
            continue
        if not wanted.contains(version.base_version):  # without release candidate or CUDA suffix
            what = f"is version {version}; hf_seg was tested with {wanted}"
            yield Problem(level="warning", code="old-package", place=name, what=what, remedy=remedy)


def _torchvision() -> Iterator[Problem]:
    # A torchvision built for another torch fails when its operators are registered or used; transformers then reports
    # only "Could not import module 'SegformerForSemanticSegmentation'".
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0, 0.5]), 0.5)
    except Exception as error:
        try:
            versions = {name: metadata.version(name) for name in ("torch", "torchvision")}
        except metadata.PackageNotFoundError:
            return  # `_requirements` reports it
        needs = [line for line in metadata.requires("torchvision") or () if Requirement(line).name == "torch"]
        what = (
            f"torchvision {versions['torchvision']} does not work with torch {versions['torch']} "
            f"({type(error).__name__}: {error}); its package requires {', '.join(needs) or 'no torch'}"
        )
        remedy = "Install both together, from one index: pip install --upgrade --force-reinstall torch torchvision"
        yield Problem(code="torch-torchvision", place="torchvision", what=what, remedy=remedy)


def check_gpu() -> list[Problem]:
    """Look for an NVIDIA GPU that training would not use."""
    import torch

    if torch.accelerator.is_available() or not _has_nvidia_gpu():
        return []
    if torch.version.cuda is None:
        what = f"torch {torch.__version__} is built without CUDA, but this machine has an NVIDIA GPU"
        remedy = "Install a CUDA build, as https://pytorch.org describes; training on the CPU takes many times longer."
    else:
        what = f"torch {torch.__version__} cannot use the NVIDIA GPU of this machine"
        try:
            torch.cuda.init()
        except Exception as error:
            what += f" ({str(error).splitlines()[0]})"
        remedy = "`nvidia-smi` must list it: install or update the driver; a container must be started with the GPU."
    return [Problem(level="warning", code="unused-gpu", place="torch", what=what, remedy=remedy)]


def _has_nvidia_gpu() -> bool:
    for device in PCI_DEVICES.glob("*"):
        with suppress(OSError):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == NVIDIA and kind.startswith(DISPLAY):
                return True
    return False


def check_shared_memory(workers: int, batch_bytes: int) -> list[Problem]:
    """Check that shared memory has room for the batches of the data loader's workers, two batches for each."""
    needed = 2 * workers * batch_bytes
    if not SHARED_MEMORY.is_dir() or (free := shutil.disk_usage(SHARED_MEMORY).free) >= needed:
        return []
    what = f"has {free / 1e6:.0f} MB free, but {workers} data loader workers need {needed / 1e6:.0f} MB: they crash"
    remedy = "Start the container with a larger --shm-size, or set training.dataloader_num_workers to 0."
    place = str(SHARED_MEMORY)
    return [Problem(level="warning", code="small-shared-memory", place=place, what=what, remedy=remedy)]
