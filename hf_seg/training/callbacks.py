"""When a training evaluates; how long it takes; when it stops early; how Ctrl-C or SIGTERM stops it without loss."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from hf_seg.processes import say_once

SIGNALS = (signal.SIGINT, signal.SIGTERM)
KNOWS_SENDERS = hasattr(signal, "sigwaitinfo")  # not on macOS


class Interrupted(Exception):
    """The signal `signum` ended the run; what the model has learnt is in the last checkpoint."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_status = 128 + signum  # as shells report a process that was ended by a signal


class EvaluateEvery(TrainerCallback):
    """Evaluates and saves after every n-th epoch and the last one; Trainer itself can only do so after every epoch."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_epoch_end(self, args, state, control, **kwargs):
        if round(state.epoch) % self.epochs and state.global_step < state.max_steps:
            control.should_evaluate = control.should_save = False
        return control


class TrainingTime(TrainerCallback, ExportableState):
    """Counts the seconds of a training, validation included, over all its launches. Time after a launch's last
    checkpoint does not count, since the next launch repeats that work."""

    def __init__(self):
        self.before, self.begin = 0.0, None

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks[type(self).__name__]
        self.before, self.begin = saved["attributes"]["seconds"], time.perf_counter()

    def on_train_end(self, args, state, control, **kwargs):
        state.stateful_callbacks[type(self).__name__] = self.state()

    def state(self) -> dict:
        here = 0.0 if self.begin is None else time.perf_counter() - self.begin
        return {"args": {}, "attributes": {"seconds": self.before + here}}

    @classmethod
    def of(cls, state: TrainerState) -> float:
        """Return the seconds that a finished training took."""
        return state.stateful_callbacks[cls.__name__]["attributes"]["seconds"]


class StopEarly(EarlyStoppingCallback):
    """Ends training after `patience` validations in a row without a better mIoU. Resumed trainings keep the count."""

    @property
    def stopped(self) -> bool:
        return self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_train_begin(self, args, state, control, **kwargs):
        # the checkpoint's count, or the initial one; Trainer itself would restore it only together with its `control`
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        self.early_stopping_patience_counter = saved["early_stopping_patience_counter"]
        control.should_training_stop = self.stopped
        return control

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if f"eval_{args.metric_for_best_model}" in metrics:  # else it evaluates the best checkpoint, after training
            super().on_evaluate(args, state, control, metrics, **kwargs)
        return control

    def on_train_end(self, args, state, control, **kwargs):
        if self.stopped and state.global_step < state.max_steps:
            count = self.early_stopping_patience
            validations = "one validation" if count == 1 else f"{count} validations"
            with tqdm.external_write_mode():
                say_once(f"stopped after epoch {state.epoch:g}: no better validation mIoU in {validations}")


class StopWhenAsked(TrainerCallback):
    """After a signal, saves a checkpoint at the end of the current step and ends training there. At the end of an
    epoch the evaluation comes first, since a resumed training begins with the next epoch.

    An evaluation during training is finished first, since its checkpoint is saved after it. An evaluation after
    training is aborted at once, since there is nothing to save.
    """

    def __init__(self):
        self.signum: int | None = None
        self.training = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.training = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.signum is not None and not self._ends_epoch(state):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.signum is not None:
            control.should_training_stop, control.should_save = True, self._ends_epoch(state)
            control.should_evaluate &= control.should_save  # otherwise the step before has already saved
        return control

    @staticmethod
    def _ends_epoch(state: TrainerState) -> bool:
        return state.epoch % 1 == 0 or state.global_step >= state.max_steps

    def on_evaluate(self, args, state, control, **kwargs):
        if self.signum is not None and self.training:
            control.should_training_stop = True
        return control

    def on_train_end(self, args, state, control, **kwargs):
        self.training = False

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.signum is not None and not self.training:
            raise Interrupted(self.signum)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the first signal while the block runs; a second signal ends the process as usual.

        Raises:
            Interrupted: after a signal, at the end of the block or in an evaluation before it.
        """
        # not with several ranks: if they stopped at different steps, they would wait for each other for ever
        if PartialState().num_processes > 1 or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {signum: signal.signal(signum, self._note) for signum in SIGNALS}
        try:
            yield
            if self.signum is not None:
                raise Interrupted(self.signum)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _note(self, signum: int, frame) -> None:
        if self.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.signum = signum
        name = signal.Signals(signum).name
        # not `print`, since the signal may interrupt a `print`
        with suppress(OSError):  # the reader of a pipe, such as `tee`, may have ended at the same Ctrl-C
            os.write(sys.stderr.fileno(), f"\n{name}: saving and stopping; a second signal stops at once\n".encode())


def protect_workers(loader: DataLoader) -> None:
    """Let only this process end the loader's workers by SIGINT or SIGTERM: it needs them until it has saved."""
    loader.worker_init_fn = partial(_start_worker, os.getpid(), loader.worker_init_fn)
    if KNOWS_SENDERS:
        loader._get_iterator = partial(_blocked, loader._get_iterator)


def _blocked(create: Callable[[], Any]) -> Any:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # workers inherit it, in all of their threads
    try:
        return create()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(main: int, prepare: Callable[[int], None] | None, worker: int) -> None:
    # terminals and launchers send signals to whole process groups, Slurm and systemd to each process
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
    if KNOWS_SENDERS:
        threading.Thread(target=_end_when_told_by, args=[main], daemon=True).start()
    if prepare is not None:
        prepare(worker)


def _end_when_told_by(main: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != main:
        pass
    os._exit(0)
