"""Time of a run of hf_seg, of the Hugging Face example and of a plain PyTorch loop: `python benchmarks/peers.py`.

All three train the same model on the same pairs of original size, resized to 64×64, with AdamW and a global batch of
64, each in its own process:

- hf_seg: trained as in a launch; the first epoch includes building the model and the cache.
- example: like transformers' semantic segmentation example. `Trainer` in fp32, a transform of `datasets` that decodes
  and resizes each pair in each epoch, an evaluation that gathers all logits, and `mean_iou` over all maps.
- plain: like the code of the study. A Dataset of files and a DataLoader with two workers, fp32, evaluation with
  `mean_iou`.

The time of 30 epochs is extrapolated: first + 29 × later (median) + 15 evaluations, one after every second epoch,
without saving checkpoints. Memory is the growth of the process and its workers. `--data` names a folder with the
original files, in `oxford-iiit-pet` and `cityscapes`; without it, generated pictures are enlarged.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from measure import PeakMemory, in_own_process, machine, print_row, print_table
from original_size import TRAIN_PAIRS, build_root
from peer_ways import WAYS, Job, Times
from per_pair import SIZE

from hf_seg.recipe.keys import DataRecipe

TASKS = {
    "pet-segformer": ("oxford_pet", "segformer"),
    "pet-fcn": ("oxford_pet", "fcn"),
    "cityscapes-segformer": ("cityscapes", "segformer"),
}


def measure(way: str, job: Job) -> Times:
    times = Times()
    with PeakMemory() as memory:
        WAYS[way](job, times)
    times.megabytes = memory.megabytes
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with original files; generated ones if not given")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--pairs", type=int, help="train pairs an epoch, instead of the real 3,312 and 2,616")
    parser.add_argument("--epochs", type=int, default=3, help="epochs that are measured; at least 2 (default: 3)")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("--epochs: at least 2, since the first is unlike the later ones")
    print(f"{machine()}, {'original' if options.data else 'generated'} pictures\n")
    print_table(
        ["task", "way", "first epoch, s", "later epochs, s", "evaluation, s", "30 epochs, s", "ratio to hf_seg", "MB"]
    )
    for task in options.tasks:
        name, arch = TASKS[task]
        pairs = options.pairs or TRAIN_PAIRS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            root, counts = build_root(name, folder, options.data, pairs)
            data = DataRecipe(name=name, root=str(root), image_size=SIZE, cache=str(folder / "cache"))
            base = None
            for way in WAYS:
                job = Job(data=data, arch=arch, folder=folder / way, epochs=options.epochs)
                times = in_own_process(measure, way, job)
                base = base or times.run
                cells = [times.epochs[0], times.later, statistics.median(times.evaluations)]
                print_row(
                    [f"{task}, {counts['train']:,} + {counts['validation']:,} pairs", way]
                    + [f"{seconds:.2f}" for seconds in cells]
                    + [f"{times.run:.0f}", f"{times.run / base:.2f}", f"{times.megabytes:.0f}"]
                )


if __name__ == "__main__":
    main()
