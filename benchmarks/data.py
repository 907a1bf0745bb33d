"""Images per second of hf_seg's cache against `datasets` and PIL: `python benchmarks/data.py`.

Pairs of original size become batches of 64 at 64×64, ready for the model. The baseline does what many training scripts
do: `datasets` image columns with a transform for each pair (PIL's resize, then a float tensor), read by a DataLoader
with one worker per core; each of its epochs takes equally long. hf_seg's first pass decodes, checks and resizes all
pairs on all cores and caches them; later passes read shuffled batches from the cache and convert them to float. Each
measurement runs in its own process; the table shows medians over repeats. Memory is the growth of the process and its
workers, including the mapped pages of the cache.

`--data` names a folder with the original files, in `oxford-iiit-pet` and `cityscapes`; without it, generated pictures
are enlarged to 500×375 (JPEG) and 2048×1024 (PNG).
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from datasets import Image
from measure import PeakMemory, in_own_process, machine, print_row, print_table
from original_size import TRAIN_PAIRS, build_root
from per_pair import SIZE, PerPair
from torch.utils.data import DataLoader

from hf_seg.data import load_spec, load_splits
from hf_seg.data.cache import prepare_splits
from hf_seg.data.transforms import build_transforms, collate
from hf_seg.recipe.keys import DataRecipe

BATCH = 64
CORES = len(os.sched_getaffinity(0))
LATER_SECONDS = 2.0  # later passes are repeated for at least this long


def count(loader) -> int:
    return sum(len(batch["labels"]) for batch in loader)


def baseline(recipe: DataRecipe) -> dict:
    """Measure one pass of `datasets` and PIL: images per second as `rate`, and `megabytes`."""
    pairs = load_splits(recipe)["train"].cast_column("image", Image()).cast_column("mask", Image())
    pairs = pairs.with_transform(PerPair(load_spec(recipe)))
    with PeakMemory() as memory:
        start = time.perf_counter()
        images = count(DataLoader(pairs, batch_size=BATCH, shuffle=True, num_workers=CORES))
        seconds = time.perf_counter() - start
    return {"rate": images / seconds, "megabytes": memory.megabytes}


def ours(recipe: DataRecipe, folder: str) -> dict:
    """Measure hf_seg's first pass into an empty folder (`rate`, images per second), later passes, and `megabytes`."""
    spec, splits = load_spec(recipe), load_splits(recipe)
    transforms = build_transforms(recipe, spec)
    del splits["validation"], splits["test"]
    with PeakMemory() as memory:
        start = time.perf_counter()
        pairs = prepare_splits(splits, spec, transforms, folder)["train"]
        first = len(pairs) / (time.perf_counter() - start)
        loader = DataLoader(pairs, batch_size=BATCH, shuffle=True, collate_fn=collate)
        images, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < LATER_SECONDS:
            images += count(map(transforms["train"].finish, loader))
    return {"rate": first, "later": images / seconds, "megabytes": memory.megabytes}


def compare(name: str, pairs: int, data: Path | None, repeats: int) -> list[str]:
    """Measure one data set, and return its row of the table."""
    runs: dict[str, list[dict]] = {"baseline": [], "ours": []}
    with tempfile.TemporaryDirectory() as temporary:
        root, _ = build_root(name, Path(temporary), data, pairs)
        recipe = DataRecipe(name=name, root=str(root), image_size=SIZE)
        for repeat in range(repeats):
            runs["baseline"].append(in_own_process(baseline, recipe))
            runs["ours"].append(in_own_process(ours, recipe, f"{temporary}/cache-{repeat}"))

    def median(way: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[way])

    rate, first, later = median("baseline", "rate"), median("ours", "rate"), median("ours", "later")
    row = [f"{name}, {pairs:,} pairs", f"{rate:.0f}", f"{first:.0f}", f"{first / rate:.2f}"]
    row += [f"{later:.0f}", f"{later / rate:.0f}"]
    return row + [f"{median(way, 'megabytes'):.0f}" for way in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with original files; generated ones if not given")
    parser.add_argument("--pairs", type=int, help="pairs a pass, instead of the real 3,312 and 2,616")
    parser.add_argument("--names", nargs="+", choices=TRAIN_PAIRS, default=[*TRAIN_PAIRS], help="data sets")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}, {'original' if options.data else 'generated'} pictures\n")
    print_table(
        ["data", "datasets + PIL, images/s", "first pass", "ratio", "later passes", "ratio"]
        + ["datasets + PIL, MB", "hf_seg, MB"]
    )
    for name in options.names:
        print_row(compare(name, options.pairs or TRAIN_PAIRS[name], options.data, options.repeats))


if __name__ == "__main__":
    main()
