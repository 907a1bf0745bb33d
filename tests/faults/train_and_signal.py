"""`hf_seg/train.py` that gets a signal in one of its steps, while it evaluates, or while it saves: `… SIGNAL WHEN`."""

import multiprocessing
import os
import signal
import subprocess
import sys

from hf_seg import train
from hf_seg.training.trainer import SegTrainer

when, name = sys.argv.pop(), sys.argv.pop()
METHODS = {  # and how many steps are done by then
    "step": ("training_step", 9),
    "last step of an epoch": ("training_step", 3),
    "last step before a validation": ("training_step", 7),
    "last step": ("training_step", 15),
    "evaluation": ("prediction_step", 9),
    "saving": ("_save_checkpoint", 9),
    "test": ("test", 9),
}
method, steps = METHODS[when]


def interfere(self, *arguments, **keywords):
    if self.state.global_step >= steps and not interfere.done:
        interfere.done = True
        if workers := [str(worker.pid) for worker in multiprocessing.active_children()]:
            subprocess.run(["kill", "-s", name.removeprefix("SIG"), *workers], check=True)  # as Slurm and systemd do
        os.killpg(0, signal.Signals[name])  # as a terminal or a launcher does
    return original(self, *arguments, **keywords)


os.setpgid(0, 0)
interfere.done = False
original = getattr(SegTrainer, method)
setattr(SegTrainer, method, interfere)

if __name__ == "__main__":
    sys.exit(train.main())
