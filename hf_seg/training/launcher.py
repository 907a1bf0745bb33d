"""`hf-seg train --num_processes N`: accelerate's launcher with all the options that it expects."""

import logging
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.commands import launch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from hf_seg.problem import Refusal
from hf_seg.processes import say_once


def launch_processes(count: int, arguments: list[str]) -> int:
    """Run `hf_seg.train` in `count` processes on this machine, with accelerate's launcher: each on its own GPU, or all
    on the CPU where there are no GPUs.

    Args:
        arguments (`list[str]`): the command line of `hf_seg.train`.

    Returns:
        `int`: exit status: 0, or that of the process that failed first; 130 or 143 after Ctrl-C or SIGTERM.

    Raises:
        Refusal: when there are GPUs, but too few.
    """
    on_gpus = torch.accelerator.is_available() and torch.accelerator.current_accelerator().type != "mps"
    if on_gpus and (gpus := torch.accelerator.device_count()) < count:
        what = f"each process needs its own GPU, but there {'is one' if gpus == 1 else f'are {gpus}'}"
        raise Refusal(f"--num_processes {count}", what, "start fewer processes", code="processes")
    if not on_gpus:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # every option whose absence accelerate warns about; the recipe decides on precision and compilation
    options = f"--multi_gpu --gpu_ids all --num_processes {count} --num_machines 1 --main_process_port 0"
    options += " --mixed_precision no --dynamo_backend no"
    # by path: --module would prefer a folder hf_seg in the working directory, such as another checkout
    command = [*options.split(), str(Path(__file__).parents[1] / "train.py"), *arguments]
    elastic = logging.getLogger("torch.distributed.elastic")  # the processes themselves report why they fail
    elastic.propagate, elastic.handlers = False, [logging.NullHandler()]
    try:
        launch.launch_command(launch.launch_command_parser().parse_args(command))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            say_once(f"error: {name} ended process {rank}; launch again to continue", sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stopped:
        say_once(f"stopped by {stopped.sigval.name}; launch again to continue", sys.stderr)
        return 128 + stopped.sigval
    return 0
