"""Images per second by the number of pairs and ranks: `python benchmarks/scale.py`.

`SegTrainer` trains SegFormer-B0 on cached pairs under torchrun with a global batch of 64: n pairs and 8n pairs on one
rank, and n pairs on two ranks, each rank with one thread. The upper limit for two ranks on this machine is measured
with two programs of one rank that run at the same time: they have the batches of 32 of the two ranks and share memory
and cache of the processor, but do not communicate. The first epoch is left out. The measurements take turns; the table
shows medians over repeats. Two cores must be free.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from measure import machine, print_row, print_table
from original_size import build_root
from seg_run import BATCH, EpochTimer, build_quiet_trainer, build_recipe

from hf_seg.recipe.keys import DataRecipe

FACTOR = 8


def train(root: str, epochs: int, batch: int, out: Path) -> None:
    """Train as one rank, started by torchrun. The main process writes the images per second of each epoch to `out`."""
    state = PartialState(cpu=True)
    torch.set_num_threads(1)
    data = DataRecipe(name="oxford_pet", root=root, cache=str(Path(root).parent / "cache"))
    recipe = build_recipe(arch="segformer", data=data, epochs=epochs, batch=batch)
    timer = EpochTimer()
    trainer = build_quiet_trainer(recipe, out.parent, [timer])
    trainer.train()
    if state.is_main_process:
        out.write_text(json.dumps([len(trainer.train_dataset) / seconds for seconds in timer.seconds]))
    state.destroy_process_group()


def launch(root: Path, epochs: int, ranks: int, programs: int) -> float:
    """Run `programs` trainings at once; return the sum of their images per second (median after the first epoch)."""
    with tempfile.TemporaryDirectory() as temporary:
        outs = [Path(temporary) / str(number) / "rates.json" for number in range(programs)]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        started = []
        for out in outs:
            out.parent.mkdir()
            command = [*torchrun, __file__, "--train", str(root), str(epochs), str(BATCH // programs), str(out)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            started.append(subprocess.Popen(command, env=environment))
        if any([process.wait() for process in started]):
            raise SystemExit("a run has failed")
        return sum(statistics.median(json.loads(out.read_text())[1:]) for out in outs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=512, help="n, a multiple of 64 (default: 512)")
    parser.add_argument("--epochs", type=int, default=3, help="epochs a run, at least 2 (default: 3)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train", nargs=4, metavar=("ROOT", "EPOCHS", "BATCH", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        root, epochs, batch, out = options.train
        return train(root, int(epochs), int(batch), Path(out))
    if options.pairs % BATCH or options.epochs < 2:
        parser.error("--pairs must be a multiple of 64, so that all batches are whole, and --epochs at least 2")
    print(machine() + ", one thread a rank\n")
    print_table(["pairs", "ranks", "programs at once", "images/s", "ratio to the first row"])
    with tempfile.TemporaryDirectory() as temporary:
        few, many = (
            build_root("oxford_pet", Path(temporary) / str(factor), None, factor * options.pairs)[0]
            for factor in (1, FACTOR)
        )
        runs = {(few, 1, 1): [], (many, 1, 1): [], (few, 2, 1): [], (few, 1, 2): []}
        for _ in range(options.repeats):
            for (root, ranks, programs), rates in runs.items():
                rates.append(launch(root, options.epochs, ranks, programs))
    medians = [statistics.median(rates) for rates in runs.values()]
    for (root, ranks, programs), rate in zip(runs, medians, strict=True):
        pairs = options.pairs * (FACTOR if root == many else 1)
        print_row([f"{pairs:,}", str(ranks), str(programs), f"{rate:.1f}", f"{rate / medians[0]:.2f}"])


if __name__ == "__main__":
    main()
