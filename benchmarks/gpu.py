"""Time of a training step on a GPU, by model, batch size, precision and launch method: `python benchmarks/gpu.py`.

Prints one Markdown table in under six minutes. At 64×64 a GPU waits for Python to launch its kernels; CUDA graphs and
`torch.compile` launch many at once. The step is that of the bare loop in `train_step.py`: forward, loss, backward,
clipping and optimiser on a batch in the device's memory. Eager rows and CUDA graphs come first, then compilation,
until the time is over; a row that fails or is not reached says why. fp32 multiplies in full precision; tf32 allows
convolutions and matrix products to round to TF32; bf16 is autocast with the settings of fp32.

`start` is the time until the first steps are done, including capturing or compiling. The share of the peak counts
three times the multiply-adds of the forward pass, since the backward pass needs twice as many. `SegTrainer` uses the
same launch method as the bare loop, with batches of 64. On a CPU there are only eager rows.
"""

import argparse
import gc
import itertools
import signal
import statistics
import time

import torch
from accelerate import PartialState
from measure import machine, print_row, print_table
from seg_run import BATCH, build_recipe
from torch import nn
from train_step import bare_loop, compare, compiled, now
from transformers import set_seed

from hf_seg.data import load_spec
from hf_seg.models.build import build_model, measure_forward
from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import DataRecipe
from hf_seg.training.graphs import GraphedModel

MODELS = {"SegFormer-B0": "segformer", "FCN ResNet-50": "fcn"}
PRECISIONS = ("bf16", "tf32", "fp32")
# TFLOP/s without sparsity, from the vendor's data sheets of the SXM versions; the H200 has the same units as the H100.
PEAKS = {name: {"bf16": 989, "tf32": 494, "fp32": 67} for name in ("H100", "H200")}
IMAGE_SIZE = 64  # pixels; height and width


def graphs(model: nn.Module, pixel_values: torch.Tensor, bf16: bool) -> GraphedModel:
    """Wrap the model as `training.cuda_graphs` does."""
    graphed = GraphedModel(model, torch.bfloat16 if bf16 else None)
    graphed.capture(pixel_values)
    return graphed


WAYS = {"eager": None, "CUDA graphs": graphs, "compile": compiled}


def allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def recipe_of(arch: str, precision: str, batch: int) -> Recipe:
    data = DataRecipe(name="synthetic_pet", max_validation_samples=1, max_test_samples=1)
    recipe = build_recipe(arch=arch, data=data, epochs=4, batch=batch)
    recipe.training.bf16 = precision == "bf16"
    return recipe


def step_seconds(recipe: Recipe, way: str, device: torch.device, steps: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a step over `repeats` measurements of `steps` steps; seconds until the first `steps` are
    done."""
    batch = recipe.training.global_train_batch_size
    spec = load_spec(recipe.data)
    set_seed(0)
    model, _ = build_model(recipe.model, spec, (IMAGE_SIZE, IMAGE_SIZE))
    pixel_values = torch.rand(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    labels = torch.randint(0, spec.num_labels, (batch, IMAGE_SIZE, IMAGE_SIZE), device=device)
    start = now()
    epoch = bare_loop(model, recipe, device, [{"pixel_values": pixel_values, "labels": labels}] * steps, WAYS[way])
    epoch()
    first = now() - start
    seconds = []
    for _ in range(repeats):
        start = now()
        epoch()
        seconds.append((now() - start) / steps)
    return statistics.median(seconds), first


def trainer_ratio(arch: str, way: str, device: torch.device, steps: int) -> float:
    """Time of an epoch of `SegTrainer` ÷ that of the bare loop, measured as in `train_step.py`; in bf16 on a GPU."""
    recipe = recipe_of(arch, "fp32" if device.type == "cpu" else "bf16", BATCH)
    recipe.data.max_train_samples = steps * BATCH
    recipe.training.cuda_graphs, recipe.training.compile = way == "CUDA graphs", way == "compile"
    trainer, bare, _ = compare(recipe, device, steps, WAYS[way])
    return trainer / bare


def row_of(name: str, batch: int, precision: str, way: str, device: torch.device, options) -> list[str]:
    allow_tf32(precision == "tf32")
    recipe = recipe_of(MODELS[name], precision, batch)
    seconds, first = step_seconds(recipe, way, device, options.steps, options.repeats)
    model, _ = build_model(recipe.model, load_spec(recipe.data), (IMAGE_SIZE, IMAGE_SIZE))
    operations = 2 * 3 * measure_forward(model, (IMAGE_SIZE, IMAGE_SIZE))["multiply_adds"] * batch
    peak = peak_of(device, precision)
    share = f"{operations / seconds / peak / 1e12:.1%}" if peak else "–"
    ratio = "–"
    if batch == BATCH and precision == ("fp32" if device.type == "cpu" else "bf16"):
        ratio = f"{trainer_ratio(MODELS[name], way, device, options.trainer_steps):.2f}"
    return [f"{seconds * 1e3:.2f}", f"{batch / seconds:,.0f}", share, f"{first:.1f}", ratio]


def peak_of(device: torch.device, precision: str) -> float | None:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peaks[precision] for name, peaks in PEAKS.items() if name in card), None)


def reason(error: BaseException) -> str:
    """The first line of an error, cut to fit a table cell."""
    said = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {said}"[:120]


class TimeIsOver(BaseException):
    """A `BaseException`, so that no library catches it as an error of its own."""


def ring(*_) -> None:
    raise TimeIsOver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--steps", type=int, default=5, help="at a time (default: 5)")
    parser.add_argument("--repeats", type=int, default=5, help="of these, of which the median counts (default: 5)")
    parser.add_argument("--trainer_steps", type=int, default=8, help="of an epoch of SegTrainer (default: 8)")
    parser.add_argument("--seconds", type=int, default=340, help="after which no row is begun (default: 340)")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    device = PartialState(cpu=options.device == "cpu").device
    on_gpu = device.type == "cuda"
    print(machine(device.type))
    if peaks := [f"{p} {peak_of(device, p)}" for p in PRECISIONS if peak_of(device, p)]:
        print(f"Assumed peak, dense, in TFLOP/s: {', '.join(peaks)}.")
    print()
    head = ["model", "batch", "precision", "way", "ms a step", "images/s", "of the peak", "start, s"]
    print_table([*head, "SegTrainer ÷ bare loop"])
    signal.signal(signal.SIGALRM, ring)
    # first what starts quickly; compilation comes last, with the most useful precision first
    groups = [["eager", "CUDA graphs"], ["compile"]] if on_gpu else [["eager"]]
    precisions = PRECISIONS if on_gpu else ("bf16", "fp32")
    for ways in groups:
        for precision, batch, name, way in itertools.product(precisions, options.batches, options.models, ways):
            left = end - time.monotonic()
            try:
                if left <= 0:
                    ring()
                signal.setitimer(signal.ITIMER_REAL, left)
                cells = row_of(name, batch, precision, way, device, options)
            except TimeIsOver:
                cells = ["not measured: the time is over", *"––––"]
            except Exception as error:  # the next row may still work
                cells = [f"failed: {reason(error)}", *"––––"]
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            print_row([name, str(batch), precision, way, *cells])
            torch.compiler.reset()
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
