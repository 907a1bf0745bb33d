"""`hf_seg/train.py` with batch norm in eval mode and dropout off: what depends on how a batch is divided is gone."""

import sys

from torch import nn

from hf_seg import train
from hf_seg.training import setup


def build_in_eval_mode(*arguments):
    model, provenance = build_model(*arguments)
    model.train = lambda mode=True: nn.Module.train(model, False)
    return model, provenance


build_model, setup.build_model = setup.build_model, build_in_eval_mode

if __name__ == "__main__":
    sys.exit(train.main())
