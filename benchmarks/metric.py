"""Time and memory of `SegMetric` against `mean_iou` of `evaluate`: `python benchmarks/metric.py`.

Both get the same batches of uint8 maps and compute the scores, which must agree to 1e-9; only the metric's work is
timed. Memory is the growth of the process. Each measurement has its own process; results are medians over repeats.

Without `--script`, benchmarks/mean_iou.py stands for upstream's script: `evaluate` stores the maps in the same way,
and they are counted one by one with `np.histogram`, as upstream documents it. `--script` names a copy of the real
script.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import evaluate
import numpy as np
from measure import PeakMemory, in_own_process, machine, print_row, print_table

from hf_seg.scoring.metrics import SegMetric

# number of maps, height, width, classes, maps per batch
SETS = {"Oxford-IIIT Pet, test": (3669, 64, 64, 3, 64), "Cityscapes, test": (500, 1024, 2048, 19, 4)}
BLOCK = 16  # pixels; maps consist of squares with this side, so that they compress like real maps


def batches(count: int, height: int, width: int, num_labels: int, batch: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of uint8 maps `(batch, height, width)`: references with a tenth of their pixels void, and
    predictions that are wrong at the borders."""
    random = np.random.default_rng(0)
    for start in range(0, count, batch):
        size = (min(batch, count - start), height // BLOCK, width // BLOCK)
        blocks = random.integers(0, num_labels, size, dtype=np.uint8)
        void = np.where(random.random(size) < 0.1, np.uint8(255), blocks)
        ids, references = (values.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2) for values in (blocks, void))
        yield {"predictions": np.roll(ids, 2, axis=2), "references": references}


def measure(way: str, script: str, shape: tuple[int, int, int, int, int]) -> dict:
    """Measure one metric: seconds of its work, megabytes, and its scores."""
    num_labels = shape[3]
    if way == "ours":
        metric, arguments = SegMetric(num_labels), {}
    else:
        metric, arguments = evaluate.load(script), {"num_labels": num_labels, "ignore_index": 255}
    seconds = 0.0
    with PeakMemory() as memory:
        for batch in batches(*shape):
            start = time.perf_counter()
            metric.add_batch(**batch)
            seconds += time.perf_counter() - start
            memory.look()
        start = time.perf_counter()
        scores = metric.compute(**arguments)
        seconds += time.perf_counter() - start
    return {"seconds": seconds, "megabytes": memory.megabytes, "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--maps", type=int, help="maps a set, instead of 3,669 and 500")
    parser.add_argument("--script", help="a local copy of evaluate's mean_iou.py")
    options = parser.parse_args()
    script = options.script or str(Path(__file__).with_name("mean_iou.py"))
    print(machine() + "\n")
    print_table(["maps", "evaluate, s", "SegMetric, s", "ratio", "evaluate, MB", "SegMetric, MB"])
    for name, (count, *rest) in SETS.items():
        shape = (options.maps or count, *rest)
        results: dict[str, list[dict]] = {"upstream": [], "ours": []}
        for _ in range(options.repeats):
            for way, runs in results.items():
                runs.append(in_own_process(measure, way, script, shape))
        theirs, ours = (runs[0]["scores"] for runs in results.values())
        for key in ours:
            np.testing.assert_allclose(theirs[key], ours[key], rtol=0, atol=1e-9, err_msg=f"{name}: {key}")
        seconds, megabytes = (
            [statistics.median(run[key] for run in runs) for runs in results.values()]
            for key in ("seconds", "megabytes")
        )
        print_row(
            [f"{name}: {shape[0]:,} of {shape[1]}×{shape[2]}, {shape[3]} classes"]
            + [f"{value:.3f}" for value in seconds]
            + [f"{seconds[0] / seconds[1]:.1f}"]
            + [f"{value:.0f}" for value in megabytes]
        )


if __name__ == "__main__":
    main()
