"""Images per second of hf_seg's `predict` against transformers' pipeline: `python benchmarks/inference.py`.

Both read the same JPEG photographs of 500×375 pixels and predict class ids at native size, with the same weights. The
pipeline runs with its defaults (one by one) and with its own batching; its masks are merged into one map of ids, as
`predict` returns it. Prints a Markdown table of medians over repeats, with the ratio to the faster pipeline.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, pipeline

from hf_seg.data import load_spec, load_splits
from hf_seg.inference.predict import predict
from hf_seg.inference.segmenter import load_segmenter
from hf_seg.models import FCNConfig, FCNForSemanticSegmentation
from hf_seg.models.build import build_image_processor
from hf_seg.recipe.keys import DataRecipe

DATA = DataRecipe(name="synthetic_pet", max_train_samples=100, max_validation_samples=1, max_test_samples=1)


def photographs(folder: Path) -> list[Path]:
    """Write 100 generated photographs, enlarged to the size of a Pet photograph (500×375); return their paths."""
    paths = []
    for index, row in enumerate(load_splits(DATA)["train"]):
        paths.append(folder / f"{index:03}.jpg")
        row["image"].resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def save_model(arch: str, folder: Path) -> Path:
    torch.manual_seed(0)
    spec = load_spec(DATA)
    classes = {"id2label": spec.id2label, "label2id": spec.label2id}
    if arch == "fcn":
        model = FCNForSemanticSegmentation(FCNConfig(**classes))
    else:
        model = SegformerForSemanticSegmentation(SegformerConfig(**classes))
    model.save_pretrained(folder / arch)
    build_image_processor(size=(64, 64), normalize="none").save_pretrained(folder / arch)
    return folder / arch


def ids_of(masks: list[dict], label2id: dict[str, int]) -> np.ndarray:
    """Merge the pipeline's masks, one per class, into one map of ids, uint8 of shape (height, width)."""
    ids = np.zeros(masks[0]["mask"].size[::-1], dtype=np.uint8)
    for mask in masks:
        ids[np.asarray(mask["mask"]) > 0] = label2id[mask["label"]]
    return ids


def compare(folder: Path, paths: list[Path], repeats: int) -> str:
    """Measure one model, and return its row of the table."""
    segmenter = load_segmenter(folder, device="cpu")
    segment = pipeline("image-segmentation", model=str(folder), device="cpu")
    label2id = segmenter.model.config.label2id
    ways = {
        "pipeline": lambda: [ids_of(segment(str(path)), label2id) for path in paths],
        "batched": lambda: [ids_of(masks, label2id) for masks in segment([*map(str, paths)], batch_size=32)],
        "ours": lambda: [prediction.mask for prediction in predict(segmenter, paths)],
    }
    rates, masks = {way: [] for way in ways}, {}
    for _ in range(repeats):
        for way, call in ways.items():
            start = time.perf_counter()
            masks[way] = call()
            rates[way].append(len(paths) / (time.perf_counter() - start))
    rate = {way: statistics.median(values) for way, values in rates.items()}
    equal = np.mean([(a == b).mean() for a, b in zip(masks["pipeline"], masks["ours"], strict=True)])
    ratio = rate["ours"] / max(rate["pipeline"], rate["batched"])
    return " | ".join([f"{rate[way]:.1f}" for way in ways] + [f"{ratio:.2f}", f"{equal:.3%}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 100 photographs of 500×375\n")
    print("| model | pipeline, images/s | pipeline, batches of 32 | hf_seg, images/s | ratio | equal pixels |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        paths = photographs(Path(temporary))
        for arch in ("fcn", "segformer"):
            print(f"| {arch} | {compare(save_model(arch, Path(temporary)), paths, repeats)} |", flush=True)


if __name__ == "__main__":
    main()
