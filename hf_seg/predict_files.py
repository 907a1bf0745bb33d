"""`hf-seg predict`: masks, overlays and a line of numbers for each photograph, in a folder."""

from __future__ import annotations

import colorsys
import json
import os
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from hf_seg.predict import Prediction, Segmenter, Unreadable, expand_paths, load_segmenter, predict


def palette_of(segmenter: Segmenter) -> list[tuple[int, int, int]]:
    """One RGB colour a class: those that a run of hf_seg saved in `config.palette`, else evenly spread hues."""
    saved = getattr(segmenter.model.config, "palette", None)
    if saved:
        return [tuple(colour) for colour in saved]
    golden = 0.61803398875  # consecutive multiples of it, modulo 1, never come close to each other
    hues = [colorsys.hsv_to_rgb(index * golden % 1, 0.65, 0.9 - 0.3 * (index % 2)) for index in range(256)]
    colours = [tuple(round(255 * part) for part in hue) for hue in hues]
    return [colours[index % 256] for index in range(len(segmenter.class_names))]


def predict_to_folder(
    model: Segmenter | str | Path, paths: Sequence[str | Path], out: str | Path, **options
) -> list[Unreadable]:
    """[`predict`], with everything written to a folder.

    For each photograph `NAME.png` (the mask as an indexed PNG with the classes' colours) and `NAME_overlay.jpg` (the
    mask over the photograph), under the photographs' common folder; and `predictions.jsonl` with a line for each file:
    `file`, `height`, `width`, `class_shares`, `mean_confidence`, or `file` and `error`.

    Args:
        model, paths, options: as for [`predict`].
        out (`str` or `Path`): the folder, which is created.

    Returns:
        `list[Unreadable]`: the files that were left out.

    Raises:
        PredictError: as [`predict`].
    """
    files = expand_paths(paths)
    names = _output_names(files)
    load = {key: options.pop(key) for key in ("device", "dtype") if key in options}
    segmenter = model if isinstance(model, Segmenter) else load_segmenter(model, **load)
    predictions = predict(segmenter, files, **options)
    palette, out, unreadable = palette_of(segmenter), Path(out), []
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(max_workers=2) as pool, open(out / "predictions.jsonl", "w", encoding="utf-8") as lines:
        written: deque = deque()
        for prediction in tqdm(predictions, total=len(files), unit=" images"):
            if isinstance(prediction, Unreadable):
                unreadable.append(prediction)
            else:
                written.append(pool.submit(write_prediction, prediction, palette, out / names[prediction.path]))
            lines.write(_as_json(prediction) + "\n")
            if len(written) > 64:  # encoding is slower than the model: do not pile up photographs
                written.popleft().result()
        for future in written:
            future.result()
    return unreadable


def write_prediction(prediction: Prediction, palette: Sequence[tuple[int, int, int]], target: Path) -> None:
    """Write `<target>.png`, the mask with its palette, and `<target>_overlay.jpg`, the mask over the photograph."""
    target.parent.mkdir(parents=True, exist_ok=True)
    colours = np.array(palette, dtype=np.uint8)
    mask = Image.fromarray(prediction.mask)
    if prediction.mask.dtype == np.uint8:
        mask = Image.frombytes("P", mask.size, prediction.mask.tobytes())
        mask.putpalette(colours.tobytes())
    mask.save(target.with_name(target.name + ".png"))
    coloured = Image.fromarray(colours[prediction.mask]).resize(prediction.image.size, Image.Resampling.NEAREST)
    overlay = Image.blend(prediction.image, coloured, 0.5)
    overlay.save(target.with_name(target.name + "_overlay.jpg"), quality=90)


def _output_names(files: Sequence[Path]) -> dict[Path, str]:
    """Each file's place below the common folder, without suffix unless another file differs in nothing else."""
    absolute = {path: Path(os.path.abspath(path)) for path in files}
    root = os.path.commonpath([path.parent for path in absolute.values()])
    stems = {path: absolute[path].relative_to(root).with_suffix("") for path in files}
    counts = Counter(stems.values())
    return {
        path: str(stem if counts[stem] == 1 else stem.with_name(f"{stem.name}_{path.suffix[1:]}"))
        for path, stem in stems.items()
    }


def _as_json(prediction: Prediction | Unreadable) -> str:
    """One line of JSON: the file with its class shares and mean confidence, or with the error."""
    if isinstance(prediction, Unreadable):
        return json.dumps({"file": str(prediction.path), "error": prediction.reason})
    height, width = prediction.mask.shape
    return json.dumps(
        {
            "file": str(prediction.path),
            "height": height,
            "width": width,
            "class_shares": prediction.class_shares,
            "mean_confidence": prediction.mean_confidence,
        }
    )
