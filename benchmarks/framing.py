"""Compare stretch, letterbox and crop at the same cost of training: `python benchmarks/framing.py`.

SegFormer-B0 is trained from random weights on generated streets of 480×360 pixels, with the same number of steps and
about the same number of pixels per step. All scores are at the test pictures' own size (`test.native`). `stretch 4:3`
has the pictures' aspect ratio, approximately, so that they are not distorted. Finished runs are not repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from measure import machine, print_row, print_table

from hf_seg import train
from hf_seg.data.sources.cityscapes import CLASSES
from hf_seg.data.sources.synthetic import street

WIDTH, HEIGHT = 480, 360
WAYS = {
    "stretch": {"image_size": 192, "resize": "stretch"},
    "stretch 4:3": {"image_size": [160, 224], "resize": "stretch"},
    "letterbox": {"image_size": 192, "resize": "letterbox"},
    "crop": {"image_size": 192, "resize": "crop"},
}


def write_streets(folder: Path, counts: dict[str, int]) -> None:
    """Write streets with masks, unless they exist, and classes.json; each pixel has one of 19 classes or is void."""
    street.WIDTH, street.HEIGHT, street.FOCAL = WIDTH, HEIGHT, WIDTH * street.SCALE
    for number, (split, count) in enumerate(counts.items()):
        for index in range(count):
            image, mask = (folder / split / kind / f"{index}.png" for kind in ("images", "masks"))
            if not mask.exists():
                image.parent.mkdir(parents=True, exist_ok=True)
                mask.parent.mkdir(parents=True, exist_ok=True)
                for picture, path in zip(
                    street.draw_street(np.random.default_rng([number, index])), (image, mask), strict=True
                ):
                    picture.save(path)
    classes = [{"name": name, "id": label_id} for label_id, name, _ in CLASSES]
    void = [label_id for name, label_id in street.LABEL_IDS.items() if name in ("own car", "ground")]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore": void}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/framing"), help="where pictures and runs go")
    parser.add_argument("--train", type=int, default=320)
    parser.add_argument("--test", type=int, default=80)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    args = parser.parse_args()
    data = (args.out / "streets").absolute()
    write_streets(data, {"train": args.train, "validation": 40, "test": args.test})

    print(f"machine: {machine()}; {args.train} pictures, {args.epochs} epochs, batches of 16, seeds {args.seeds}")
    print_table(["data.resize", "input", "test mIoU at 480×360, mean ± deviation", "images/s in training"])
    for way in args.ways:
        keys = WAYS[way]
        results = []
        for seed in args.seeds:
            name = f"{way.replace(' 4:3', '-43')}-{seed}"
            recipe = {
                "model": {"arch": "segformer"},
                "data": {"name": "folder", "root": str(data), "augment": "flip", **keys},
                "training": {
                    "num_train_epochs": args.epochs,
                    "global_train_batch_size": 16,
                    "lr_scheduler_type": "cosine",
                    "eval_every_epochs": max(1, args.epochs // 4),
                    "seed": seed,
                    "disable_tqdm": True,
                },
            }
            path = args.out / "recipes" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(recipe, indent=2))
            assert train.main([str(path), "--output_dir", str(args.out / "runs")]) == 0
            results.append(json.loads((args.out / "runs" / name / "results.json").read_text()))
        scores = [each["test"]["native"]["mean_iou"] for each in results]
        deviation = f" ± {np.std(scores, ddof=1):.4f}" if len(scores) > 1 else ""
        rate = np.mean([each["train"]["images_per_second"] for each in results])
        size = keys["image_size"] if isinstance(keys["image_size"], list) else [keys["image_size"]] * 2
        print_row([way, f"{size[1]}×{size[0]}", f"{np.mean(scores):.4f}{deviation}", f"{rate:.1f}"])


if __name__ == "__main__":
    main()
