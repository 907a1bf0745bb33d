import sys

import numpy as np
import pytest
import torch

from hf_seg import memory
from hf_seg.memory import peak_memory, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how much a process took at most")
def test_the_peak_and_forgetting_it():
    reset_peak_memory(CPU)
    before = peak_memory(CPU)
    array = np.ones(50_000_000)
    assert before + 390 < peak_memory(CPU) < before + 450
    del array
    assert peak_memory(CPU) > before + 390
    reset_peak_memory(CPU)
    assert peak_memory(CPU) < before + 50


def test_where_nobody_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")
    reset_peak_memory(CPU)
    assert peak_memory(CPU) is None
