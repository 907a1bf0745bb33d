"""`hf_seg/train.py` that gets a signal at its tenth step, while it evaluates, or while it saves: `… SIGNAL WHEN`."""

import os
import signal
import sys

from hf_seg import train
from hf_seg.training.trainer import SegTrainer

when, name = sys.argv.pop(), sys.argv.pop()
METHODS = {"step": "training_step", "evaluation": "prediction_step", "saving": "_save_checkpoint", "test": "test"}


def interfere(self, *arguments, **keywords):
    if self.state.global_step >= 9 and not interfere.done:
        interfere.done = True
        os.kill(os.getpid(), signal.Signals[name])
    return original(self, *arguments, **keywords)


interfere.done = False
original = getattr(SegTrainer, METHODS[when])
setattr(SegTrainer, METHODS[when], interfere)

if __name__ == "__main__":
    sys.exit(train.main())
