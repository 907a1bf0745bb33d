"""`hf-seg errors`: the test pictures that a model gets wrong, on one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_seg.data import image_name, load_spec
from hf_seg.files import check_writable
from hf_seg.problem import Refusal
from hf_seg.processes import say_once, start_processes
from hf_seg.runs.figure import IGNORED_STRIPES, colour_masks
from hf_seg.runs.page import HTML_PAGES, generator, is_page_of, write_page
from hf_seg.runs.record import ERRORS, PER_IMAGE, RESULTS, load_arrays, load_results
from hf_seg.scoring.confusion import class_iou, mean_iou
from hf_seg.scoring.upsampling import upsampled_argmax
from hf_seg.training.evaluate import check_root, examine, load_training, section_of
from hf_seg.training.memory import explained
from hf_seg.training.trainer import SegTrainer

if TYPE_CHECKING:
    from hf_seg.inference.exported import ExportedSegmenter
    from hf_seg.inference.segmenter import Segmenter

LARGEST_SIDE = 360  # of a picture on the page, in pixels
OF_A_CLASS = 4  # pictures of each class
NAMED = 0.01  # a confusion is listed from this share of the pixels
RED = np.array([214, 39, 40])


def write_errors(
    folder: Path,
    load: Callable[[str | Path], Segmenter | ExportedSegmenter],
    out: Path | None = None,
    count: int = 8,
) -> Path:
    """Write the page of a finished run, or of a folder of `hf-seg evaluate`.

    Args:
        load: [`hf_seg.inference.exported.load_model`], passed in, so that training does not depend on inference.
        out: the folder to write to; by default the run's own.
        count: how many worst and how many suspicious pictures; each class has at most `OF_A_CLASS`.

    Returns:
        `Path`: the page.

    Raises:
        Refusal: when the run's record or its data cannot be used, or another file is where the page belongs.
    """
    results = load_results(folder, or_evaluation=True)
    names = results["data"]["class_names"]
    page, kept = (out or folder) / ERRORS, load_arrays(folder / PER_IMAGE, len(names))
    if page.exists() and not is_page_of(page, "errors"):
        raise Refusal(page, "exists, and `hf-seg errors` did not write it", "name another --out", code="errors")
    check_writable(page.parent)
    if kept is None:
        raise Refusal(folder, f"holds no {PER_IMAGE}", "test it again with `hf-seg evaluate`", code="errors")
    remedy = "test it with `hf-seg evaluate` on the data where it is now, and name the output folder"
    check_root(folder, results["recipe"]["data"], remedy)
    start_processes()
    evaluation = results.get("evaluation", {"model": str(folder), "label_map": {}})
    segmenter, confusion = load(evaluation["model"]), kept["confusion"]
    # the record decides which pairs; size and normalisation are the model's
    section = section_of(folder, "data", results["recipe"]["data"] | {"image_size": 32, "normalize": "none"})
    if [*load_spec(section).class_names] != names:
        what = f"the classes of its data were {', '.join(names)} when it was tested, and have changed since"
        remedy = "test it again with `hf-seg evaluate` and --label_map, and name the output folder"
        raise Refusal(folder / RESULTS, what, remedy, code="errors")
    with tempfile.TemporaryDirectory() as empty:  # a trainer needs a folder
        model, label_map = evaluation["model"], evaluation["label_map"]
        examination = examine(model, segmenter, section, Path(empty), load_training(model), label_map)
        trainer = examination.trainer
        if trainer.data.fingerprint != results["data"]["fingerprint"]:
            what = "its data is not what it was tested on (the fingerprints differ)"
            raise Refusal(folder / RESULTS, what, "restore the data", code="errors")
        say_once(f"{len(confusion):,} test pictures, {trainer.precision}")
        with explained(trainer.args, examination.size, "evaluation"):
            suspicion = measure_disagreement(trainer)
        sections = choose(confusion, suspicion, names, count)
        text = HTML_PAGES.get_template("training/errors.html.jinja").render(
            name=results["recipe"]["name"],
            title=results["data"]["title"],
            test=results["test"],
            pictures=len(confusion),
            mark=generator("errors"),
            red=_hex(RED),
            stripes=[_hex(grey) for grey in IGNORED_STRIPES],
            palette={name: _hex(colour) for name, colour in zip(names, trainer.data.spec.palette, strict=True)},
            sections=[
                part | {"shown": [_show(trainer, *each, confusion, part["class"]) for each in part["chosen"]]}
                for part in sections
            ],
        )
        trainer.release()
    write_page(text, page)
    return page


def choose(confusion: np.ndarray, suspicion: np.ndarray, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Choose the pictures of the page.

    Args:
        confusion (of shape `(images, C, C)`): the matrix of each test image, whose rows are true classes.
        suspicion (of shape `(images,)`): the result of [`measure_disagreement`].
        count (`int`): how many worst and how many suspicious pictures.

    Returns:
        `list[dict]`: the sections of the page: `kind` (`"worst"`, `"class"` or `"suspicious"`), `title`, `class` (its
        id, or None) and `chosen`: (index, score in words) of pictures, the worst first. A class that does not occur in
        the truth has no section.
    """
    scores, iou, area = mean_iou(confusion), class_iou(confusion), confusion.sum(axis=2)

    def section(
        kind: str, title: str, number: int | None, indices: Iterable[int], score: str, values: np.ndarray
    ) -> dict[str, Any]:
        chosen = [(int(index), f"{score} {values[index]:.2f}") for index in indices]
        return {"kind": kind, "title": title, "class": number, "chosen": chosen}

    worst = [index for index in np.argsort(scores, kind="stable") if not np.isnan(scores[index])][:count]
    sections = [section("worst", "Worst pictures", None, worst, "mIoU", scores)]
    for number, name in enumerate(names):
        # among those with an IoU of 0, the one with the largest area of the class comes first
        order = np.lexsort((-area[:, number], iou[:, number]))
        if hardest := [index for index in order if area[index, number]][:OF_A_CLASS]:
            sections.append(section("class", name, number, hardest, "IoU", iou[:, number]))
    doubtful = [index for index in np.argsort(-suspicion, kind="stable") if suspicion[index] > 0][:count]
    score = "confident disagreement"
    return [*sections, section("suspicious", "Masks that may be wrong", None, doubtful, score, suspicion)]


def measure_disagreement(trainer: SegTrainer) -> np.ndarray:
    """Measure for each test image the share of the labelled pixels where prediction and mask differ, times the mean
    probability of the predicted class on these pixels: float64 of shape `(images,)`, in [0, 1]. It is high where the
    model is sure that the mask is wrong in a large part of the picture."""
    prepared, transform, found = trainer.data.prepared["test"], trainer.eval_transform, []
    for start in range(0, len(prepared), trainer.args.per_device_eval_batch_size):
        indices = range(start, min(start + trainer.args.per_device_eval_batch_size, len(prepared)))
        batch = transform.finish(prepared.__getitems__([*indices]))
        ids, confidence = upsampled_argmax(trainer.picture_scores(batch["pixel_values"]), batch["labels"].shape[-2:])
        found.append(disagreement(ids.cpu(), confidence.cpu(), batch["labels"], trainer.data.spec.ignore_index))
    return torch.cat(found).double().numpy()


def disagreement(ids: Tensor, confidence: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """[`measure_disagreement`] for a batch: `(batch,)`, from three tensors `(batch, height, width)`."""
    labelled = labels != ignore_index
    wrong = labelled & (ids != labels)
    # equals the share of the wrong pixels times their mean confidence
    return (confidence * wrong).sum(dim=(1, 2)) / labelled.sum(dim=(1, 2)).clamp(min=1)


def describe_confusions(matrix: np.ndarray, names: Sequence[str], number: int | None = None) -> list[str]:
    """Describe the two largest confusions in a picture's matrix `(C, C)`, or those that involve the class with the id
    `number`: "12% of the pixels: cat taken for dog"."""
    shares = matrix / max(1, matrix.sum())
    np.fill_diagonal(shares, 0)
    if number is not None:
        others = np.arange(len(names)) != number
        shares[np.ix_(others, others)] = 0
    largest = [divmod(int(place), len(names)) for place in np.argsort(-shares, axis=None, kind="stable")[:2]]
    return [
        f"{shares[true, predicted]:.0%} of the pixels: {names[true]} taken for {names[predicted]}"
        for true, predicted in largest
        if shares[true, predicted] >= NAMED
    ]


def _show(trainer: SegTrainer, index: int, score: str, confusion: np.ndarray, number: int | None) -> dict[str, Any]:
    """Build one picture in its own shape, with truth, prediction and differences; `number` is a class id or None."""
    test, spec, transform = trainer.data.splits["test"], trainer.data.spec, trainer.data.transforms["test"]
    pair, picture = test[index], test[index]["image"]
    scale = min(1, LARGEST_SIDE / max(picture.size))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    pixel_values = trainer.eval_transform.finish(trainer.data.prepared["test"].__getitems__([index]))["pixel_values"]
    box = transform.box((picture.height, picture.width))
    scores = trainer.picture_scores(pixel_values)
    ids, confidence = upsampled_argmax(scores, (height, width), frame=transform.size, box=box)
    predicted, confidence = ids[0].cpu().numpy(), confidence[0].cpu().numpy()
    truth = transform.class_ids(pair["mask"].resize((width, height), Image.Resampling.NEAREST))
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    ignored, palette = truth == spec.ignore_index, np.array(spec.palette)
    images = {
        "photograph": np.asarray(picture),
        "truth": colour_masks(truth[None], palette, ignored[None])[0],
        "prediction": palette[predicted],
        "differences": draw_differences(np.asarray(picture.convert("L")), truth != predicted, confidence, ignored),
    }
    return {
        "name": _short_name(image_name("test", test, index), trainer.run.recipe.data.root),
        "score": score,  # why it is there
        "confusions": describe_confusions(confusion[index], spec.class_names, number),
        "images": {title: _address(pixels, photograph=title == "photograph") for title, pixels in images.items()},
    }


def _short_name(name: str, root: str | None) -> str:
    """Return a path relative to the data's folder, or only the file name: the page may be shown to others."""
    path = Path(name)
    below = root is not None and path.is_relative_to(folder := Path(root).expanduser().absolute())
    return path.relative_to(folder).as_posix() if below else path.name


def draw_differences(grey: np.ndarray, wrong: np.ndarray, confidence: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Draw a pale photograph: the more confident a wrong prediction, the redder; ignored pixels are striped.

    All arguments have the shape `(height, width)`; `grey` is in 0..255 and `confidence` in [0, 1]. Returns integers in
    0..255 of shape `(height, width, 3)`.
    """
    pale = np.repeat((160 + 0.37 * grey)[..., None], 3, axis=2)
    strength = np.where(wrong, 0.25 + 0.75 * confidence, 0)[..., None]
    stripes = colour_masks(np.zeros((1, *grey.shape), int), np.array([[255] * 3]), ignored[None])[0]
    return np.where(ignored[..., None], stripes, (1 - strength) * pale + strength * RED).round().astype(int)


def _address(pixels: np.ndarray, photograph: bool) -> str:
    """Encode a picture as a data URI."""
    file, kind = io.BytesIO(), "jpeg" if photograph else "png"
    Image.fromarray(pixels.astype(np.uint8)).save(file, kind, **({"quality": 85} if photograph else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _hex(colour: Iterable[int]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)
