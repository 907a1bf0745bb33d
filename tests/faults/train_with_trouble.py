"""`hf_seg/train.py` of which one rank gets into trouble: `… TROUBLE`. Without one of these words nothing happens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from hf_seg import data, launch, train
from hf_seg.problem import RecipeError
from hf_seg.training.trainer import SegTrainer

trouble, rank = sys.argv.pop(), int(os.environ["RANK"])


def training_step(self, model, inputs, *arguments, **keywords):
    if self.state.global_step == 5:
        if trouble == "killed" and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "nan" and rank == 1:
            inputs["pixel_values"].fill_(torch.nan)
        if trouble.startswith("cut:") and rank == 0:
            subprocess.run(["ip", "link", "set", trouble.removeprefix("cut:"), "down"], check=True)
    return original(self, model, inputs, *arguments, **keywords)


def load_pairs(*arguments):
    if trouble == "slow" and rank == 0:
        time.sleep(600)
    return original_pairs(*arguments)


def step(*arguments):
    if trouble == "trial" and rank == 1:
        raise RecipeError("training.debug", "is refused here only", "leave it out")
    return original_step(*arguments)


original, SegTrainer.training_step = SegTrainer.training_step, training_step
original_pairs, data.load_pairs = data.load_pairs, load_pairs
original_step, launch._step = launch._step, step
if trouble == "apart":
    folder = Path(f"machine-{rank}")
    folder.mkdir()
    os.chdir(folder)

if __name__ == "__main__":
    sys.exit(train.main())
