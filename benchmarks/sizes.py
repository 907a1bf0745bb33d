"""Images per second and disk space by input size: `python benchmarks/sizes.py`.

Pictures of 2048×1024 become batches ready for the model: resized to squares, or as random windows of 1024×1024
(`data.resize` "crop"). The baseline decodes each picture every time (`data.cache` false). The cache keeps prepared
pairs on disk; for windows, it keeps whole pictures. One process reads shuffled batches. The two take turns, and the
table shows medians over repeats.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from measure import in_own_process, machine, print_row, print_table
from original_size import build_root
from torch.utils.data import DataLoader

from hf_seg.data import load_spec, load_splits
from hf_seg.data.cache import prepare_splits
from hf_seg.data.transforms import build_transforms, collate
from hf_seg.recipe.keys import DataRecipe

WAYS = {
    "64×64": {"image_size": 64},
    "256×256": {"image_size": 256},
    "512×512": {"image_size": 512},
    "windows of 1024×1024": {"image_size": 1024, "resize": "crop"},
}
LEAST_SECONDS = 3.0  # passes are repeated for at least this long


def rate(recipe: DataRecipe, cache: str | bool, batch: int) -> float:
    """Training images per second, without the time to fill the cache."""
    spec, splits = load_spec(recipe), load_splits(recipe)
    transforms = build_transforms(recipe, spec)
    del splits["validation"], splits["test"]
    pairs = prepare_splits(splits, spec, transforms, cache)["train"]
    loader = DataLoader(pairs, batch_size=batch, shuffle=True, collate_fn=collate)
    images, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < LEAST_SECONDS:
        images += sum(len(transforms["train"].finish(part)["labels"]) for part in loader)
    return images / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine()}, generated pictures of 2048×1024, {options.pairs} pairs\n")
    print_table(["input", "decoded, images/s", "kept, images/s", "ratio", "kept, MB a picture"])
    for way, keys in WAYS.items():
        rates: dict[str, list[float]] = {"decoded": [], "kept": []}
        with tempfile.TemporaryDirectory() as temporary:
            root, _ = build_root("cityscapes", Path(temporary), None, options.pairs)
            recipe = DataRecipe(name="cityscapes", root=str(root), **keys)
            cache, batch = Path(temporary) / "cache", min(16, options.pairs)
            for _ in range(options.repeats):
                rates["kept"].append(in_own_process(rate, recipe, str(cache), batch))
                rates["decoded"].append(in_own_process(rate, recipe, False, batch))
            megabytes = sum(path.stat().st_size for path in cache.rglob("*.npy")) / 1e6 / options.pairs
        decoded, kept = (statistics.median(rates[each]) for each in ("decoded", "kept"))
        print_row([way, f"{decoded:.1f}", f"{kept:.1f}", f"{kept / decoded:.1f}", f"{megabytes:.2f}"])


if __name__ == "__main__":
    main()
