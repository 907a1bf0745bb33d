"""mIoU of finished runs, without and with averaging over the mirrored image: `python benchmarks/mirrored.py RUN…`.

The class probabilities of an image and of its mirror image, mirrored back, are averaged, which takes twice the time.
This concerns prediction only: scores of runs and comparisons do not use it. Computed in fp32.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from measure import print_row, print_table
from torch import Tensor

from hf_seg.data import fingerprint, load_spec, load_splits
from hf_seg.data.cache import prepare_splits
from hf_seg.data.transforms import build_transforms
from hf_seg.inference.segmenter import Segmenter, load_segmenter
from hf_seg.recipe import load_recipes
from hf_seg.runs.record import load_results
from hf_seg.scoring.metrics import SegMetric
from hf_seg.scoring.upsampling import upsample

BATCH = 64


def probabilities(segmenter: Segmenter, pixel_values: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Yield class probabilities `(batch, C, height, width)`: plain, then averaged with those of the mirrored
    images."""
    model, pixel_values = segmenter.model, pixel_values.to(segmenter.model.device)
    plain, mirrored = (
        upsample(model(pixel_values=images).logits, size).softmax(dim=1)
        for images in (pixel_values, pixel_values.flip(-1))
    )
    yield plain
    yield (plain + mirrored.flip(-1)) / 2


@torch.inference_mode()
def score(run: Path, split: str) -> list[float]:
    """The two mIoUs of a split, plain and averaged."""
    data, results = load_recipes([run / "run.json"])[-1].data, load_results(run)
    spec, splits = load_spec(data), load_splits(data)
    if fingerprint(splits) != results["data"]["fingerprint"]:
        raise SystemExit(f"{run}: was trained on other data than {data.name} is here")
    transforms = build_transforms(data, spec)
    prepared = prepare_splits(splits, spec, transforms, data.cache)[split]
    segmenter = load_segmenter(run)
    metrics = [SegMetric(spec.num_labels, spec.ignore_index) for _ in range(2)]
    for start in range(0, len(prepared), BATCH):
        batch = transforms[split].finish(prepared.__getitems__([*range(start, min(start + BATCH, len(prepared)))]))
        labels = batch["labels"].to(segmenter.model.device)
        ways = probabilities(segmenter, batch["pixel_values"], labels.shape[-2:])
        for metric, way in zip(metrics, ways, strict=True):
            metric.add_batch(predictions=way.argmax(dim=1), references=labels)
    return [metric.compute()["mean_iou"] for metric in metrics]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    options = parser.parse_args()
    print_table(["run", f"{options.split} mIoU", "with the mirrored image"])
    for run in options.runs:
        print_row([run.name, *(f"{value:.4f}" for value in score(run, options.split))])


if __name__ == "__main__":
    main()
