"""The processes of a launch: how they start, wait for each other, agree, and stop together."""

from __future__ import annotations

import os
import sys
import threading
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TextIO, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from hf_seg.problem import Refusal
from hf_seg.text import say

TIMEOUT = "HF_SEG_TIMEOUT"
PATIENCE = 10  # seconds that a process waits for another before it prints a message
# gloo raises plain RuntimeErrors; these are parts of their messages, in torch 2.15, when a connection ends or stalls
GLOO = ("gloo", "Application timeout", "Connection closed by peer", "Connection reset by peer", "Timed out waiting")
T = TypeVar("T")


def say_once(message: object, file: TextIO | None = None, keep: str = "") -> None:
    """Call [`hf_seg.text.say`] in one process of each machine."""
    if PartialState().is_local_main_process:
        say(message, file, keep)


def start_processes() -> None:
    """Join the processes of this launch, and on a CPU divide this machine's physical cores among its processes.

    Raises:
        Refusal: when several processes were asked for but only one was started, or as [`time_limit`].
    """
    environment = os.environ
    on_cpu = environment.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.accelerator.is_available()
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}
    # accelerate 1.15 then sets the address at which several processes meet, but silently starts only one
    if on_cpu and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= {*environment} and not ranks & {*environment}:
        remedy = "start them with `hf-seg train … --num_processes N`, or run a single process with --num_processes 1"
        what = "was asked for several processes, but on a CPU it starts only one"
        raise Refusal("accelerate launch", what, remedy, code="processes")
    for key in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"):  # of the launcher or `accelerate config`
        if (value := environment.pop(key, "no")).lower() != "no":
            name = key.removeprefix("ACCELERATE_").lower()
            say(f"accelerate's {name} {value} is not used: bf16, fp16 and compile of the recipe decide", sys.stderr)
    PartialState(cpu=on_cpu, timeout=timedelta(seconds=time_limit()))
    # torchrun and `accelerate launch` without `--cpu` set OMP_NUM_THREADS=1, even without a GPU: training would run on
    # one core. Any other value was set by the user and is kept.
    if on_cpu and environment.get("OMP_NUM_THREADS", "1") == "1":
        cores = torch.cpu.get_capabilities().get("num_physical_cores") or os.cpu_count() or 1
        if hasattr(os, "sched_getaffinity"):
            cores = min(cores, len(os.sched_getaffinity(0)))
        torch.set_num_threads(max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", 1))))


def time_limit() -> float:
    """Return the seconds that a process waits for another before it gives up: `$HF_SEG_TIMEOUT`, else half an hour.

    Raises:
        Refusal: when the variable is not a number above 0 and up to 10⁷.
    """
    text = os.environ.get(TIMEOUT, "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= 10**7:
        raise Refusal(TIMEOUT, f"is {text!r}", "set it to a number of seconds, above 0", code="processes")
    return seconds


def explain_lost_process(error: Exception) -> str | None:
    """Return a message for an error that means that another process has ended or does not answer; None for others."""
    reason = str(error).partition("\n")[0].removesuffix(".")
    if isinstance(error, RuntimeError) and reason.startswith("DataLoader worker (pid"):  # torch 2.15
        return (
            f"a process that loads the pictures has ended ({reason}); usually the system ends it because the "
            "memory or the shared memory (/dev/shm) is full: set training.dataloader_num_workers to a smaller number "
            "(0: no such processes) and launch again: training continues from the last checkpoint"
        )
    of_gloo = isinstance(error, RuntimeError) and any(words in str(error) for words in GLOO)
    if not (of_gloo or isinstance(error, torch.distributed.DistError)) or PartialState().num_processes == 1:
        return None
    return (
        f"process {PartialState().process_index} has lost contact with the others ({reason}). If one of them "
        "gives a reason, that is the cause; otherwise check the network and the memory of the other machines. Launch "
        "again: training continues from the last checkpoint. A process waits "
        f"{time_limit():g} seconds for another; {TIMEOUT} sets this limit"
    )


def on_every_process(action: Callable[[], T]) -> T:
    """Run `action` in each process and return that process's result. If it fails anywhere, every rank raises the error
    of the lowest rank on which it failed."""
    result = error = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    for first in filter(None, gather_object([error])):
        raise first
    return result


def on_main_process(action: Callable[[], T]) -> T | None:
    """Run `action` in the main process only. Return its result, or None on other ranks; all ranks raise its error."""
    return on_every_process(action if PartialState().is_main_process else lambda: None)


def first_on_each_machine(action: Callable[[], T], what: str) -> T:
    """Run `action` in one process of each machine, then in the others, which find on disk what the first one wrote.

    Returns the result of this process. `what`, such as "a: data and weights", names the action in the message that is
    printed when the others have to wait.
    """
    state = PartialState()
    limit = f"at most {time_limit():g} seconds; {TIMEOUT} sets this limit"
    message = f"{what}: one process of this machine does this, and the others wait ({limit})"
    waiting = threading.Timer(PATIENCE, say, [message, sys.stderr])
    if state.local_process_index == 1:  # one message per machine
        waiting.start()
    try:
        result = on_every_process(action if state.is_local_main_process else lambda: None)
    finally:
        waiting.cancel()
    return on_every_process(lambda: result if state.is_local_main_process else action())


def check_agreement(name: str, fingerprint: str) -> None:
    """Refuse a run, on every rank, when the fingerprint of its data is not the same on all ranks."""
    seen = gather_object([fingerprint])
    others = [f"rank {rank} has {other}" for rank, other in enumerate(seen) if other != seen[0]]
    if others:
        what = f"the processes see different data: rank 0 has the fingerprint {seen[0]}, {', '.join(others[:4])}"
        remedy = "put the same files on all machines, under data.root or $HF_SEG_DATA"
        raise Refusal(name, what, remedy, code="processes")


def check_shared(folder: Path) -> None:
    """Refuse `folder`, on every rank, unless it is the same folder for all. The main process must be able to write to
    it."""
    state = PartialState()
    # a new name each time: a network file system may cache for a while whether a file exists
    (name,) = broadcast_object_list([f".launch-{uuid.uuid4().hex}"])
    try:
        if state.is_main_process:
            (folder / name).touch()
        state.wait_for_everyone()
        without = [rank for rank, seen in enumerate(gather_object([(folder / name).exists()])) if not seen]
    finally:
        if state.is_main_process:
            (folder / name).unlink(missing_ok=True)
    if without:
        ranks = ", ".join(map(str, without[:8]))
        what = f"is not the same folder for all processes: a file that rank 0 writes there is missing on rank {ranks}"
        raise Refusal(folder, what, "set --output_dir to a folder that all machines share", code="processes")
