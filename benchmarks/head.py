"""Time of a stock model ÷ time of hf_seg's faster version with the same weights: `python benchmarks/head.py`.

A training step is forward, loss, backward and AdamW on a batch of random numbers; inference is the forward pass of a
model in eval mode. The two models take turns, and the times are medians. A ratio of 2 means that hf_seg's model takes
half the time. bf16 is left out on a CPU without instructions for it.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from measure import machine, print_row, print_table
from transformers import PreTrainedModel, SegformerConfig, SegformerForSemanticSegmentation

from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.models.fast_segformer import make_fast
from hf_seg.recipe.keys import TrainingRecipe
from hf_seg.scoring.loss import SegLoss
from hf_seg.training.arguments import precision_of

MODELS = {
    "B0": SegformerConfig(num_labels=3),
    "B2": SegformerConfig(
        num_labels=3, depths=[3, 4, 6, 3], hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768
    ),
    "FCN-Lite0": FCNConfig(num_labels=3, encoder="tf_efficientnet_lite0"),
}
BATCHES = {64: 64, 128: 16, 512: 1}  # side of an image in pixels → batch size


def build_step(model: PreTrainedModel, pixel_values: torch.Tensor, bf16: bool) -> Callable[[], None]:
    """Build a function that takes a training step."""
    optimizer = torch.optim.AdamW(model.train().parameters(), amsgrad=True, fused=True)
    labels = torch.randint(0, 3, pixel_values[:, 0].shape, device=pixel_values.device)

    def step() -> None:
        with torch.autocast(pixel_values.device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = model(pixel_values=pixel_values)
        SegLoss()(outputs, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build_inference(model: PreTrainedModel, pixel_values: torch.Tensor, bf16: bool) -> Callable[[], None]:
    """Build a function that computes a forward pass."""
    model.eval()

    @torch.inference_mode()
    def infer() -> None:
        with torch.autocast(pixel_values.device.type, dtype=torch.bfloat16, enabled=bf16):
            model(pixel_values=pixel_values)

    return infer


WAYS = {"step": build_step, "inference": build_inference}


def compare(build: Callable, name: str, pixel_values: torch.Tensor, bf16: bool, repeats: int) -> list[float]:
    """Median seconds of the stock model and of hf_seg's version."""
    torch.manual_seed(0)
    config = MODELS[name]
    model_class = FCNForSemanticSegmentation if isinstance(config, FCNConfig) else SegformerForSemanticSegmentation
    stock = model_class(config)
    stock.to(pixel_values.device, memory_format=torch.channels_last)
    fast = copy.deepcopy(stock)
    make_fast(fast)
    calls = [build(model, pixel_values, bf16) for model in (stock, fast)]
    seconds = [[], []]
    for _ in range(repeats + 1):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if pixel_values.is_cuda:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[1:]) for taken in seconds]  # the first call selects kernels and fills caches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--pixels", nargs="+", type=int, choices=BATCHES, default=[*BATCHES])
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    device = torch.device(options.device)
    precisions = ["fp32", "bf16"] if precision_of(TrainingRecipe(), device) == "bf16" else ["fp32"]
    print(machine(device.type) + ("" if "bf16" in precisions else ", no bf16 instructions: not measured") + "\n")
    print_table(["model", "pixels", "batch", "what", "precision", "stock, ms", "hf_seg, ms", "ratio"])
    for name in options.models:
        for side in options.pixels:
            pixel_values = torch.rand(BATCHES[side], 3, side, side, device=device)
            for what, build in WAYS.items():
                for precision in precisions:
                    stock, fast = compare(build, name, pixel_values, precision == "bf16", options.repeats)
                    times = [f"{1000 * stock:.1f}", f"{1000 * fast:.1f}", f"{stock / fast:.2f}"]
                    print_row([name, f"{side}×{side}", str(BATCHES[side]), what, precision, *times])


if __name__ == "__main__":
    main()
