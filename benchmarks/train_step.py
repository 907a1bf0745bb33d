"""Time of a training epoch, `SegTrainer` on cached pairs against a bare loop: `python benchmarks/train_step.py`.

The bare loop has the same model, precision, memory layout, loss, clipping and optimiser; its batches are in the
device's memory, ready for the model. The trainer also reads shuffled batches from the cache, converts them, counts
labelled pixels, schedules the learning rate and logs. The two take turns, epoch by epoch, in one process; the table
shows medians without the first epoch. `--parts` also shows the trainer's time by part; the rest is mostly the
optimiser.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import PartialState
from measure import machine, print_row, print_table
from seg_run import BATCH, build_quiet_trainer, build_recipe
from transformers import TrainerCallback

from hf_seg.recipe import Recipe
from hf_seg.recipe.keys import DataRecipe
from hf_seg.scoring.loss import SegLoss
from hf_seg.training.arguments import precision_of, use_channels_last

# part of an epoch → the method of the trainer that does it
PARTS = {
    "forward, loss, backward": "training_step",
    "clipping": "_clip_grad_norm",
    "reading, augmenting and counting batches": "get_batch_samples",
    "counting operations for the log": "floating_point_ops",
}


def put_clocks_around_parts(trainer) -> dict[str, float]:
    """Time the methods of `PARTS`. Return the seconds of each part, which are added up while the trainer trains."""
    seconds = dict.fromkeys(PARTS, 0.0)

    def clocked(part: str, method: Callable) -> Callable:
        def call(*arguments, **keywords):
            start = now()
            result = method(*arguments, **keywords)
            seconds[part] += now() - start
            return result

        return call

    for part, name in PARTS.items():
        setattr(trainer, name, clocked(part, getattr(trainer, name)))
    return seconds


def compiled(model, pixel_values: torch.Tensor, bf16: bool):
    """Compile the model as `training.compile` does."""
    with torch.no_grad():  # the first forward pass of transformers takes a lock, which would break the graph
        model(pixel_values=pixel_values)
    return torch.compile(model, mode="reduce-overhead", dynamic=False)


class TakeTurns(TrainerCallback):
    """Time each epoch of the trainer, and an epoch of the bare loop after it, in seconds."""

    def __init__(self, bare_epoch: Callable[[], None]):
        self.bare_epoch, self.trainer, self.bare = bare_epoch, [], []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.start = now()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.trainer.append(now() - self.start)
        start = now()
        self.bare_epoch()
        self.bare.append(now() - start)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def bare_loop(
    model, recipe: Recipe, device: torch.device, batches: list[dict], wrap: Callable | None = None
) -> Callable[[], None]:
    """Build a function that trains one epoch on batches that are in memory.

    Args:
        wrap: takes the model on the device, the `pixel_values` of a batch and whether autocast is on; returns what is
            called instead of the model. None to call the model itself.
    """
    training = recipe.training
    bf16 = precision_of(training, device) == "bf16"
    model = model.to(device).train()
    if use_channels_last(training, device):
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, amsgrad=training.amsgrad, fused=device.type in ("cpu", "cuda")
    )
    forward = wrap(model, batches[0]["pixel_values"], bf16) if wrap else model

    def epoch() -> None:
        for batch in batches:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
                outputs = forward(pixel_values=batch["pixel_values"])
            SegLoss()(outputs, batch["labels"]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def compare(
    recipe: Recipe, device: torch.device, steps: int, wrap: Callable | None = None, parts: bool = False
) -> tuple[float, float, list[float]]:
    """Median seconds of an epoch of the trainer and of the bare loop; with `parts`, also the share of each of `PARTS`
    in the trainer's time.

    `wrap` is that of [`bare_loop`]; the trainer wraps its model as the recipe says.
    """
    with tempfile.TemporaryDirectory() as temporary:
        trainer = build_quiet_trainer(recipe, Path(temporary))
        batches = []
        for start in range(0, steps * BATCH, BATCH):
            batch = trainer.train_transform.finish(trainer.train_dataset.__getitems__(range(start, start + BATCH)))
            batches.append({name: values.to(device) for name, values in batch.items()})
        turns = TakeTurns(bare_loop(copy.deepcopy(trainer.model), recipe, device, batches, wrap))
        trainer.add_callback(turns)
        seconds = put_clocks_around_parts(trainer) if parts else {}
        trainer.train()
    shares = [value / sum(turns.trainer) for value in seconds.values()]
    return statistics.median(turns.trainer[1:]), statistics.median(turns.bare[1:]), shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=("fcn", "segformer"), default=["fcn", "segformer"])
    parser.add_argument("--steps", type=int, default=8, help="of 64 pairs an epoch, at most 16 (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="epochs that count (default: 5)")
    parser.add_argument("--compile", action="store_true", help="torch.compile both")
    parser.add_argument("--parts", action="store_true", help="show the parts; on a GPU, waits for it at each of them")
    options = parser.parse_args()
    if not 1 <= options.steps <= 16:
        parser.error("--steps: from 1 to 16, since the generated data has 1,024 train pairs")
    device = PartialState(cpu=options.device == "cpu").device
    print(machine(device.type) + (", compiled" if options.compile else "") + "\n")
    columns = [*PARTS, "the rest"] if options.parts else []
    print_table(["model", "precision", "SegTrainer, s an epoch", "bare loop, s", "ratio", *columns])
    for arch in options.models:
        data = DataRecipe(
            name="synthetic_pet", max_train_samples=options.steps * BATCH, max_validation_samples=1, max_test_samples=1
        )
        recipe = build_recipe(arch=arch, data=data, epochs=options.repeats + 1)
        recipe.training.compile = options.compile
        wrap = compiled if options.compile else None
        trainer, bare, shares = compare(recipe, device, options.steps, wrap, options.parts)
        precision = precision_of(recipe.training, device)
        parts = [f"{share:.1%}" for share in (*shares, 1 - sum(shares))] if shares else []
        print_row([arch, precision, f"{trainer:.3f}", f"{bare:.3f}", f"{trainer / bare:.3f}", *parts])


if __name__ == "__main__":
    main()
