"""Tools of the benchmarks: run a function in a new process, measure peak memory, name the machine, print tables."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, get_start_method, set_start_method
from typing import Any

import psutil
import torch

from hf_seg.runs.record import environment


def machine(device: str = "cpu") -> str:
    """Describe the machine in one line, to print above a table."""
    what = environment(torch.device(device))
    return (
        f"{what['hardware']}, {len(psutil.Process().cpu_affinity())} cores, {torch.get_num_threads()} threads, "
        f"torch {what['torch']}, Python {what['python']}"
    )


def in_own_process(function: Callable, *arguments) -> Any:
    """Call a function in a new process and return its result, so that memory and caches are not shared."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
        return process.submit(_call, get_start_method(), function, *arguments).result()


def _call(start_method: str, function: Callable, *arguments) -> Any:
    # else a spawned process would also spawn its data loader workers, and each would import all libraries again
    set_start_method(start_method, force=True)
    return function(*arguments)


class PeakMemory:
    """Measure by how many megabytes this process and its children grow at most during the `with` block.

    Memory that processes share counts once. It is sampled twice a second, and whenever `look` is called.
    """

    def __enter__(self) -> "PeakMemory":
        self.process, self.stopped, self.peak = psutil.Process(), threading.Event(), 0
        self.before = self._now()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self.thread.join()
        self.look()

    @property
    def megabytes(self) -> float:
        return max(self.peak - self.before, 0) / 1e6

    def look(self) -> None:
        self.peak = max(self.peak, self._now())

    def _watch(self) -> None:
        while not self.stopped.wait(0.5):
            self.look()

    def _now(self) -> int:
        total = 0
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:  # a data loader worker that has just ended
                pass
        return total


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]] = ()) -> None:
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for row in rows:
        print_row(row)


def print_row(row: Sequence[str]) -> None:
    print("| " + " | ".join(row) + " |", flush=True)
