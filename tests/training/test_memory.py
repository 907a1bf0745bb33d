import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_seg.problem import Refusal
from hf_seg.training import memory
from hf_seg.training.memory import explain, explained, peak_memory, reset_peak_memory

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


def test_what_to_do_when_the_memory_does_not_suffice():
    def training(images, parts):
        args = SimpleNamespace(device=CPU, per_device_train_batch_size=images, gradient_accumulation_steps=parts)
        return str(explain(args, (64, 64), "training")).partition("; ")[2].partition(", or lower")[0]

    # two parts of three images: three parts of two would not halve what is there at a time
    assert training(3, 2) == "set training.gradient_accumulation_steps to 6, for 1 at a time"
    assert training(8, 1) == "set training.gradient_accumulation_steps to 2, for 4 at a time"
    assert training(1, 4) == "use a device with more memory"
    args = SimpleNamespace(device=CPU, per_device_eval_batch_size=20)
    assert str(explain(args, (128, 128), "evaluation")) == (
        "cpu is out of memory in evaluation, with 20 images of 128×128 pixels at a time; set "
        "training.per_device_eval_batch_size to 10, or lower data.image_size"
    )
    args.per_device_eval_batch_size = 1
    assert "use a device with more memory" in str(explain(args, (128, 128), "evaluation"))


def test_an_error_that_is_about_memory():
    args = SimpleNamespace(device=CPU, per_device_eval_batch_size=2)

    def fail(error):
        raise error

    def take():
        torch.empty(2**60)

    for action in (take, lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))):
        with pytest.raises(Refusal, match="cpu is out of memory"), explained(args, (32, 32), "evaluation"):
            action()
    with pytest.raises(RuntimeError, match="enforce fail"), explained(args, (32, 32), "evaluation"):
        fail(RuntimeError("[enforce fail]"))
