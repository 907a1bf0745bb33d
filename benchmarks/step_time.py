"""Seconds per training step of 64 images at 64×64, by precision and memory layout: `python benchmarks/step_time.py`.

Prints a Markdown table of medians; the ratio to fp32 in torch's default layout, from the same run, is in brackets.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.models.fast_segformer import make_fast
from hf_seg.scoring.loss import SegLoss

MODELS = {
    "FCN ResNet-50": lambda: FCNForSemanticSegmentation(FCNConfig(num_labels=3)),
    "SegFormer-B0": lambda: SegformerForSemanticSegmentation(SegformerConfig(num_labels=3)),
    "SegFormer-B0, strides 2": lambda: SegformerForSemanticSegmentation(
        SegformerConfig(num_labels=3, strides=[2, 2, 2, 2])
    ),
}
COLUMNS = {
    "fp32": (False, False),
    "fp32, channels_last": (False, True),
    "bf16": (True, False),
    "bf16, channels_last": (True, True),
}
BEST = "bf16, channels_last"


def build_step(build, device: torch.device, bf16: bool, channels_last: bool) -> Callable[[], None]:
    """Build a function that takes a training step (forward, loss, backward, optimiser) and waits for the device."""
    torch.manual_seed(0)
    model = build().to(device).train()
    make_fast(model)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True, fused=True)
    pixel_values = torch.rand(64, 3, 64, 64, device=device)
    labels = torch.randint(0, 3, (64, 64, 64), device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            outputs = model(pixel_values=pixel_values)
        SegLoss()(outputs, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()
    step()  # the first two steps select kernels and fill caches
    return step


def step_time(step: Callable[[], None], repeats: int) -> float:
    """Median seconds of a step."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def print_operators(step: Callable[[], None], repeats: int) -> None:
    """Print the time of a step by operator, longest first."""
    with torch.profiler.profile() as profile:
        for _ in range(repeats):
            step()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--operators", choices=MODELS, help="show where this model's time goes instead, in bf16")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.operators:
        return print_operators(build_step(MODELS[options.operators], device, *COLUMNS[BEST]), options.repeats)
    print(f"{torch.__version__}, {options.device}, {torch.get_num_threads()} threads\n")
    print("| | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for name, build in MODELS.items():
        seconds = [step_time(build_step(build, device, *flags), options.repeats) for flags in COLUMNS.values()]
        cells = [f"{value:.3g} s ({value / seconds[0]:.2f})" for value in seconds]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
