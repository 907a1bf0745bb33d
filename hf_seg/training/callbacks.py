"""When a training evaluates; how long it takes; how Ctrl-C or SIGTERM stops it without losing what it has learnt."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from hf_seg.processes import say_once

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal, `signum`, ended the run; what it had learnt is in its last checkpoint."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_status = 128 + signum  # as shells report a process that a signal has ended


class EvaluateEvery(TrainerCallback):
    """Evaluate and save after every n-th epoch and the last one; Trainer itself only knows every epoch."""

    def __init__(self, epochs: int):
        self.epochs = epochs

    def on_epoch_end(self, args, state, control, **kwargs):
        if round(state.epoch) % self.epochs and state.global_step < state.max_steps:
            control.should_evaluate = control.should_save = False
        return control


class TrainingTime(TrainerCallback, ExportableState):
    """Counts the seconds of a training, validation included, over all its launches. What a launch did after its last
    checkpoint does not count: the next one does it again."""

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
        """The seconds of a training that has ended."""
        return state.stateful_callbacks[cls.__name__]["attributes"]["seconds"]


class StopEarly(EarlyStoppingCallback):
    """Ends the training after so many validations in a row without a better mIoU. A resumed training counts on."""

    @property
    def stopped(self) -> bool:
        return self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_train_begin(self, args, state, control, **kwargs):
        # of the checkpoint, or as this callback is; Trainer restores it only together with its control
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        self.early_stopping_patience_counter = saved["early_stopping_patience_counter"]
        control.should_training_stop = self.stopped
        return control

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if f"eval_{args.metric_for_best_model}" in metrics:  # else it is a score of the best checkpoint
            super().on_evaluate(args, state, control, metrics, **kwargs)
        return control

    def on_train_end(self, args, state, control, **kwargs):
        if self.stopped and state.global_step < state.max_steps:
            count = self.early_stopping_patience
            validations = "one validation" if count == 1 else f"{count} validations"
            with tqdm.external_write_mode():
                say_once(f"stopped after epoch {state.epoch:g}: no better validation mIoU in {validations}")


class StopWhenAsked(TrainerCallback):
    """After a signal: saves a checkpoint at the end of the step that is under way, and ends the training there. At the
    end of an epoch its evaluation comes first, as a resumed training begins with the next epoch.

    An evaluation in the middle of a training is finished first, since its checkpoint comes after it; one after the
    training is given up at once, since nothing is to be saved.
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
            control.should_evaluate &= control.should_save  # else the step before has saved
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
        """While the block runs, a first signal is noted, and a second one ends the process as it always would.

        Raises:
            Interrupted: at the end of the block, or in an evaluation before it, after a signal.
        """
        # ranks that stop at different steps would wait for each other for ever
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
        # not print: a signal may come in the middle of one
        os.write(sys.stderr.fileno(), f"\n{name}: saving and stopping; once more stops at once\n".encode())
