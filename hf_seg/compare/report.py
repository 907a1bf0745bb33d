"""A comparison of runs as a report: Markdown, and HTML that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_seg.compare import LEVEL, RESAMPLES, Arm, Comparison, mean_iou, verdict
from hf_seg.compare.plots import (
    plot_confusions,
    plot_cost,
    plot_learning,
    plot_roc_side_by_side,
    plot_same_images,
)
from hf_seg.text import hypertext, markdown, markdown_table

Value = Callable[[dict[str, Any]], float]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
td:first-child { white-space: nowrap; }
img { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Section:
    """A part of the report, the same in both forms.

    Args:
        title (`str`): its heading.
        text (`Sequence[str]`): paragraphs.
        points (`Sequence[str]`): a list under them.
        head (`Sequence[str]`), rows (`Sequence[Sequence[str]]`): a table under that.
        picture (`str`, *optional*): name of a PNG beside the report; `alt` says what it shows.
    """

    title: str
    text: Sequence[str] = ()
    points: Sequence[str] = ()
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    picture: str | None = None
    alt: str = ""


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.md` with its pictures beside it, and `comparison.html` with the pictures in it.

    Args:
        comparison ([`Comparison`]): what [`compare`] has found.
        folder (`Path`): is made when it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arms = comparison.arms
    plot_learning(arms, folder / "learning.png")
    plot_cost(arms, folder / "cost.png")
    plot_confusions(arms, arms[0].runs[0].results["data"]["class_names"], folder / "confusions.png")
    if have_roc(arms):
        plot_roc_side_by_side(arms, arms[0].runs[0].results["data"]["class_names"], folder / "roc.png")
    sections = build_sections(comparison)
    if have_same_samples(arms):
        plot_same_images(arms, folder / "same_images.png")
        sections.append(
            Section("The same images", picture="same_images.png", alt="Test images, true masks, each run's masks")
        )
    (folder / "comparison.md").write_text(as_markdown(sections), encoding="utf-8")
    (folder / "comparison.html").write_text(as_html(sections, folder), encoding="utf-8")


def build_sections(comparison: Comparison) -> list[Section]:
    """What was compared, scores, what the differences show, classes, cost, curves, first weights."""
    arms, first = comparison.arms, comparison.arms[0].runs[0].results
    data, size = first["data"], first["recipe"]["data"]["image_size"]
    to_the_best = [difference for difference in comparison.differences if difference.first is arms[0]]
    return [
        Section(
            "Comparison",
            [
                f"{data['title']}, {data['counts']['test']:,} test images at {size}×{size} pixels (fingerprint "
                f"{data['fingerprint']}). Each run was tested once, with its best checkpoint by validation mIoU. "
                "Where there are several seeds, the numbers are means ± standard deviations over them.",
            ],
        ),
        Section(
            "Scores",
            head=["run", "seeds", "test mIoU", "boundary IoU", "mean accuracy", "pixel accuracy", "validation mIoU"],
            rows=[scores(arm) for arm in arms],
        ),
        Section(
            "What the differences say",
            [
                f"Intervals: paired percentile bootstrap over test images, {RESAMPLES:,} resamples, level "
                f"{100 * LEVEL:g} %. They say how much a difference hangs on which images were tested, for these "
                "trained models. How much trainings scatter is what seeds show."
            ],
            [verdict(difference) for difference in comparison.differences],
        ),
        *protocol(comparison),
        *resolution(arms),
        Section(
            "IoU of each class",
            head=["class", *(arm.name for arm in arms)],
            rows=class_rows(arms, data["class_names"], "per_category_iou"),
            picture="confusions.png",
            alt="Confusion matrices, each row in per cent of the pixels of its true class",
        ),
        Section(
            f"IoU of each class, {arms[0].name} less the others",
            head=["class", *(arm.name for arm in arms[1:])],
            rows=[
                [name, *(f"{d.by_class[name]:+.4f}" if name in d.by_class else "–" for d in to_the_best)]
                for name in data["class_names"]
            ],
        ),
        Section(
            "Area under the ROC curve of each class against the rest",
            head=["class", *(arm.name for arm in arms)],
            rows=class_rows(arms, data["class_names"], "roc_auc"),
            picture="roc.png" if have_roc(arms) else None,
            alt="ROC curve of each class against the rest, a line an arm",
        ),
        Section(
            "Cost",
            head=["run", "parameters", "multiply-adds", "images/s", "minutes", "peak MB", "processes", "hardware"],
            rows=[costs(arm) for arm in arms],
            picture="cost.png",
            alt="Test mIoU over multiply-adds and, on the same hardware, over images a second",
        ),
        Section(
            "Training",
            head=["run", "encoder's first weights", "head's", "encoder frozen"],
            rows=[first_weights(arm) for arm in arms],
            picture="learning.png",
            alt="Training loss and validation mIoU over the epochs",
        ),
    ]


def have_roc(arms: Sequence[Arm]) -> bool:
    """Whether the arms' first runs kept their ROC curves, and a class has one; older runs kept none."""
    kept = [arm.runs[0].roc for arm in arms]
    return None not in kept and any(
        not np.isnan(rows).any() for rows in zip(*(roc["fpr"] for roc in kept), strict=True)
    )


def have_same_samples(arms: Sequence[Arm]) -> bool:
    """Whether the arms' first runs kept masks of the same test images; older runs kept none."""
    kept = [arm.runs[0].samples for arm in arms]
    return all(
        samples is not None
        and all(np.array_equal(samples[key], kept[0][key]) for key in ("pixel_values", "labels", "palette"))
        for samples in kept
    )


def as_markdown(sections: Sequence[Section], pictures: bool = True) -> str:
    parts = []
    for number, section in enumerate(sections):
        parts += [f"{'##' if number else '#'} {markdown(section.title)}", *map(markdown, section.text)]
        parts += ["\n".join(f"- {markdown(point)}" for point in section.points)] if section.points else []
        parts += [markdown_table([section.head, *section.rows])] if section.head else []
        parts += [f"![{section.alt}]({section.picture})"] if section.picture and pictures else []
    return "\n\n".join(parts) + "\n"


def as_html(sections: Sequence[Section], folder: Path) -> str:
    parts = []
    for number, section in enumerate(sections):
        tag = "h2" if number else "h1"
        parts.append(f"<{tag}>{hypertext(section.title)}</{tag}>")
        parts += [f"<p>{hypertext(paragraph)}</p>" for paragraph in section.text]
        if section.points:
            parts.append("<ul>" + "".join(f"<li>{hypertext(point)}</li>" for point in section.points) + "</ul>")
        if section.head:
            lines = [("th", section.head), *(("td", row) for row in section.rows)]
            rows = ("".join(f"<{tag}>{hypertext(cell)}</{tag}>" for cell in line) for tag, line in lines)
            parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
        if section.picture:
            data = base64.b64encode((folder / section.picture).read_bytes()).decode()
            parts.append(f'<img src="data:image/png;base64,{data}" alt="{hypertext(section.alt)}">')
    head = f'<meta charset="utf-8"><title>{hypertext(sections[0].title)}</title><style>{STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def over_seeds(arm: Arm, value: Value, form: str) -> str:
    """Mean, and deviation where there are several seeds."""
    text, deviation = format(arm.mean(value), form), arm.deviation(value)
    return text if deviation is None else f"{text} ± {deviation:{form}}"


def scores(arm: Arm) -> list[str]:
    outlines = all("boundary_iou" in run.results["test"] for run in arm.runs)  # older runs have none
    return [
        arm.name,
        ", ".join(str(run.seed) for run in arm.runs),
        over_seeds(arm, mean_iou, ".4f"),
        over_seeds(arm, lambda r: r["test"]["boundary_iou"]["mean"], ".4f") if outlines else "–",
        over_seeds(arm, lambda r: r["test"]["mean_accuracy"], ".4f"),
        over_seeds(arm, lambda r: r["test"]["overall_accuracy"], ".4f"),
        over_seeds(arm, lambda r: r["validation"]["mean_iou"], ".4f"),
    ]


def protocol(comparison: Comparison) -> list[Section]:
    """In what the arms were not trained alike, if in anything."""
    if not comparison.protocol:
        return []
    names = [arm.name for arm in comparison.arms]
    columns = [["–" if value is None else str(value) for value in values] for values in comparison.protocol.values()]
    return [
        Section(
            "Not trained alike",
            ["Scores differ for these reasons, too."],
            head=["run", *(key.partition(".")[2] for key in comparison.protocol)],
            rows=[list(row) for row in zip(names, *columns, strict=True)],
        )
    ]


def resolution(arms: Sequence[Arm]) -> list[Section]:
    """What the small size costs, where the runs have recorded it."""
    if not all("native" in run.results["test"] for arm in arms for run in arm.runs):
        return []
    results = arms[0].runs[0].results
    size = results["recipe"]["data"]["image_size"]
    stored = "×".join(map(str, results["data"]["stored_size"]["test"]))
    ceilings = results["test"]["native"]["ceilings"]
    reached = ", ".join(f"{value:.4f} from {pixels}×{pixels}" for pixels, value in ceilings.items())
    rows = []
    for arm in arms:
        height, width = arm.runs[0].results["model"]["logits_size"]
        native = over_seeds(arm, lambda r: r["test"]["native"]["mean_iou"], ".4f")
        rows.append([arm.name, f"{height}×{width}", over_seeds(arm, mean_iou, ".4f"), native])
    return [
        Section(
            "Resolution",
            [
                "The true masks themselves, shrunk to a small size and enlarged again, would reach at the own size of "
                f"the photographs (the first is stored with {stored} pixels) a mIoU of {reached}. More than that is "
                "not in masks of that size; logits, which are enlarged smoothly, can come out somewhat above."
            ],
            head=["run", "logits", f"test mIoU at {size}×{size}", "at the photographs' own size"],
            rows=rows,
        )
    ]


def class_rows(arms: Sequence[Arm], class_names: Sequence[str], key: str) -> list[list[str]]:
    def cell(arm: Arm, name: str) -> str:
        if any(run.results["test"][key].get(name) is None for run in arm.runs):
            return "–"  # a class that does not occur
        return over_seeds(arm, lambda r: r["test"][key][name], ".4f")

    return [[name, *(cell(arm, name) for arm in arms)] for name in class_names]


def costs(arm: Arm) -> list[str]:
    model = arm.runs[0].results["model"]
    memory = all(run.results["train"].get("peak_memory_mb") for run in arm.runs)
    return [
        arm.name,
        f"{model['parameters'] / 1e6:.2f} M",
        f"{model['multiply_adds'] / 1e9:.2f} G",
        over_seeds(arm, lambda r: r["train"]["images_per_second"], ".1f"),
        over_seeds(arm, lambda r: r["train"]["seconds"] / 60, ".1f"),
        over_seeds(arm, lambda r: r["train"]["peak_memory_mb"], ".0f") if memory else "–",
        ", ".join(sorted({str(run.results["train"]["world_size"]) for run in arm.runs})),
        "; ".join(arm.hardware),
    ]


def first_weights(arm: Arm) -> list[str]:
    init = arm.runs[0].results["model"]["init"]
    return [arm.name, init["encoder"]["source"], init["head"]["source"], "yes" if init["frozen"] else "no"]
