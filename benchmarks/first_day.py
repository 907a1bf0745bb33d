"""From the export of an annotation program to masks of new photographs: time and messages of the commands.

    python benchmarks/first_day.py
    python benchmarks/first_day.py --only COCO labelme --out day

Draws leaves and stones, and writes them as CVAT, Roboflow, labelme and Label Studio (COCO) export them. For each
export, it runs `hf-seg init` and the two commands that this prints after "Then:". Nothing is edited in between.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIZE = (120, 90)  # width and height in pixels
COLORS = {"background": (0, 0, 0), "leaf": (61, 61, 245), "stone": (250, 50, 83)}
NAMES = list(COLORS)
Shapes = list[tuple[str, list[tuple[float, float]]]]  # name and outline


def draw_scene(number: int) -> tuple[Image.Image, Shapes]:
    """Draw a photograph; return it and its shapes, the topmost one last."""
    random = np.random.default_rng(number)
    shapes: Shapes = []
    pixels = np.array((120, 100, 70)) + random.normal(0, 10, 3)
    ground = Image.new("RGB", SIZE, tuple(int(value) for value in pixels))
    pencil = ImageDraw.Draw(ground)
    for _ in range(random.integers(2, 5)):
        name = NAMES[random.integers(1, 3)]
        middle = np.array(SIZE) * random.uniform(0.15, 0.85, 2)
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        axes = (26, 9) if name == "leaf" else (15, 13)
        turn = random.uniform(0, np.pi)
        points = np.stack([np.cos(angles) * axes[0], np.sin(angles) * axes[1]], 1) * random.uniform(0.7, 1.1)
        points = points @ [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]] + middle
        outline = [(float(x), float(y)) for x, y in points.clip((0, 0), np.array(SIZE) - 1).round(2)]
        color = (70, 140, 60) if name == "leaf" else (150, 148, 150)
        pencil.polygon(outline, fill=tuple(int(value) for value in np.array(color) + random.normal(0, 14, 3)))
        shapes.append((name, outline))
    noisy = np.asarray(ground) + random.normal(0, 14, (SIZE[1], SIZE[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), shapes


def draw_mask(shapes: Shapes) -> np.ndarray:
    """Draw the mask of the shapes: class ids, uint8 of shape (height, width)."""
    mask = Image.new("L", SIZE)
    for name, outline in shapes:
        ImageDraw.Draw(mask).polygon(outline, fill=NAMES.index(name))
    return np.asarray(mask)


def export_cvat(root: Path, count: int) -> None:
    """Write CVAT's format "Segmentation mask 1.1", with images."""
    lines = [f"{name}:{','.join(map(str, color))}::" for name, color in COLORS.items()]
    _write(root / "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *sorted(lines)]) + "\n")
    _write(root / "ImageSets" / "Segmentation" / "default.txt", "".join(f"IMG_{n:04}\n" for n in range(count)))
    for number in range(count):
        image, shapes = draw_scene(number)
        ids = draw_mask(shapes)
        _save(image, root / "JPEGImages" / f"IMG_{number:04}.jpg")
        colors = np.array(list(COLORS.values()), np.uint8)[ids]
        _save(Image.fromarray(colors), root / "SegmentationClass" / f"IMG_{number:04}.png")
        _save(Image.fromarray(np.stack([ids * 80] * 3, -1)), root / "SegmentationObject" / f"IMG_{number:04}.png")


def export_roboflow(root: Path, count: int) -> None:
    """Write Roboflow's format "Semantic Segmentation Masks"."""
    _write(root / "README.dataset.txt", "# leaves > 2026-01-01\nProvided by a Roboflow user\n")
    _write(root / "README.roboflow.txt", "leaves - v1\n\nThis dataset was exported via roboflow.com\n")
    for number in range(count):
        split = ("train", "train", "valid", "train", "test", "train", "train", "train", "train", "train")[number % 10]
        image, shapes = draw_scene(number)
        name = f"IMG_{number:04}_jpg.rf.{number:032x}"
        _save(image, root / split / f"{name}.jpg")
        _save(Image.fromarray(draw_mask(shapes)), root / split / f"{name}_mask.png")
        rows = "".join(f"{index}, {label}\n" for index, label in enumerate(NAMES))
        _write(root / split / "_classes.csv", f"Pixel Value, Class\n{rows}")


def export_labelme(root: Path, count: int) -> None:
    """Write labelme's format: beside each photograph a JSON file, which also contains the photograph."""
    for number in range(count):
        image, shapes = draw_scene(number)
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=95)
        entries = [
            {"label": name, "points": outline, "group_id": None, "description": "", "shape_type": "polygon"}
            | {"flags": {}, "mask": None}
            for name, outline in shapes
        ]
        content = {"version": "5.5.0", "flags": {}, "shapes": entries, "imagePath": f"IMG_{number:04}.jpg"}
        content |= {"imageData": base64.b64encode(stored.getvalue()).decode()}
        content |= {"imageHeight": SIZE[1], "imageWidth": SIZE[0]}
        _save(image, root / f"IMG_{number:04}.jpg")
        _write(root / f"IMG_{number:04}.json", json.dumps(content, indent=2))


def export_coco(root: Path, count: int) -> None:
    """Write Label Studio's COCO format with images: result.json beside images/."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        image, shapes = draw_scene(number)
        name = f"{number * 2654435761 % 2**32:08x}-IMG_{number:04}.jpg"
        _save(image, root / "images" / name)
        images.append({"width": SIZE[0], "height": SIZE[1], "id": number, "file_name": f"images/{name}"})
        for label, outline in shapes:
            flat = [value for point in outline for value in point]
            entry = {"id": len(annotations), "image_id": number, "category_id": NAMES.index(label) - 1}
            annotations.append(entry | {"segmentation": [flat], "bbox": [0, 0, 1, 1], "iscrowd": 0, "area": 1})
    categories = [{"id": index, "name": name} for index, name in enumerate(NAMES[1:])]
    content = {"images": images, "categories": categories, "annotations": annotations}
    info = {"year": 2026, "version": "1.0", "description": "", "contributor": "Label Studio", "url": ""}
    _write(root / "result.json", json.dumps(content | {"info": info}, indent=2))


EXPORTS: dict[str, Callable[[Path, int], None]] = {
    "CVAT": export_cvat,
    "Roboflow": export_roboflow,
    "labelme": export_labelme,
    "COCO": export_coco,
}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)


def live(name: str, folder: Path, count: int) -> tuple[list[float], int, float]:
    """Run the commands on one export. Return the seconds of each command, the number of lines on stderr with errors or
    warnings, and the share of the new photographs' pixels whose class is right."""
    root, new = folder / name, folder / f"{name}-new"
    EXPORTS[name](root, count)
    truth = {}
    for number in range(10_000, 10_004):
        image, shapes = draw_scene(number)
        _save(image, new / f"IMG_{number}.jpg")
        truth[f"IMG_{number}.png"] = draw_mask(shapes)
    commands, seconds, complaints = [["hf-seg", "init", str(root)]], [], 0
    while commands:
        command = [
            {"PHOTOGRAPHS": str(new), "predictions": f"{new}-masks"}.get(word, word) for word in commands.pop(0)
        ]
        print(f"$ {shlex.join(command)}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        done = subprocess.run(command, text=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        print(done.stdout, done.stderr, file=sys.stderr, flush=True)
        complaints += len(re.findall(r"^.*(?:error|warning).*$", done.stderr, re.IGNORECASE | re.MULTILINE))
        done.check_returncode()
        commands += [shlex.split(line) for line in re.findall(r"^Then: (hf-seg .*)$", done.stdout, re.MULTILINE)]
    right = [np.asarray(Image.open(Path(f"{new}-masks") / file)) == mask for file, mask in truth.items()]
    return seconds, complaints, float(np.mean(right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the exports and runs stay")
    parser.add_argument("--only", nargs="*", choices=EXPORTS, default=list(EXPORTS))
    parser.add_argument("--count", type=int, default=40, help="photographs in an export")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        days = {name: live(name, options.out or Path(folder), options.count) for name in options.only}
    print(
        "| export | init, s | train, s | predict, s | errors and warnings | pixels right |\n|---|---|---|---|---|---|"
    )
    for name, (seconds, complaints, right) in days.items():
        print(f"| {name} | {' | '.join(f'{value:.0f}' for value in seconds)} | {complaints} | {right:.1%} |")


if __name__ == "__main__":
    main()
