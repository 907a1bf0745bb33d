"""A comparison of runs as a report: Markdown, and HTML that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_seg.compare import LEVEL, RESAMPLES, Arm, Comparison, verdict
from hf_seg.compare.plots import plot_confusions, plot_cost, plot_learning, plot_roc_side_by_side, plot_same_images
from hf_seg.runs.page import PAGES, describe_input


def build_report(
    comparison: Comparison, pictures: Mapping[str, str] | None = None, template: str = "comparison.md.jinja"
) -> str:
    """The report; `pictures` are names of those that [`write_report`] draws → their addresses."""
    results, best = comparison.arms[0].runs[0].results, comparison.arms[0]
    return PAGES.get_template(f"compare/{template}").render(
        arms=comparison.arms,
        differences=comparison.differences,
        to_the_best=[difference for difference in comparison.differences if difference.first is best],
        protocol=comparison.protocol,
        evaluated=[arm.name for arm in comparison.arms if arm.evaluated],
        unknown=[arm.name for arm in comparison.arms if arm.runs[0].recipe["training"] is None],
        data=results["data"],
        place=best.place,
        sizes={arm.name: describe_input(arm.runs[0].recipe["data"]) for arm in comparison.arms},
        ceilings=_ceilings(comparison.arms),
        resamples=RESAMPLES,
        level=LEVEL,
        pictures=pictures or {},
        verdict=verdict,
        show=_show,
    )


def _ceilings(arms: Sequence[Arm]) -> dict[str, float]:
    """The highest scores at the pictures' own size, by the size of the masks, of all arms: the largest first."""
    found = {size: value for arm in arms for size, value in arm.runs[0].results["test"]["native"]["ceilings"].items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _show(arm: Arm, *keys: str, form: str = ".4f", unit: float = 1) -> str:
    """The mean over seeds of what `results.json` has under `keys`, and the deviation where there are several."""
    if None in arm.values(*keys):
        return "–"  # as of a class that does not occur, or of an evaluation
    mean, deviation = arm.mean(*keys) / unit, arm.deviation(*keys)
    return format(mean, form) if deviation is None else f"{mean:{form}} ± {deviation / unit:{form}}"


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.md` with its pictures beside it, and `comparison.html` with the pictures in it."""
    folder.mkdir(parents=True, exist_ok=True)
    arms = comparison.arms
    class_names = arms[0].runs[0].results["data"]["class_names"]
    plot_confusions(arms, class_names, folder / "confusions.png")
    pictures = ["confusions.png"]
    if not all(arm.evaluated for arm in arms):
        plot_learning(arms, folder / "learning.png")
        pictures.append("learning.png")
    if not any(None in arm.values("model", "multiply_adds") for arm in arms):
        plot_cost(arms, folder / "cost.png")
        pictures.append("cost.png")
    if have_roc(arms):
        plot_roc_side_by_side(arms, class_names, folder / "roc.png")
        pictures.append("roc.png")
    if have_same_samples(arms):
        plot_same_images(arms, folder / "same_images.png")
        pictures.append("same_images.png")
    encoded = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in pictures}
    inside = {name: f"data:image/png;base64,{data}" for name, data in encoded.items()}
    text = build_report(comparison, dict(zip(pictures, pictures, strict=True)))
    page = build_report(comparison, inside, "comparison.html.jinja")
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    (folder / "comparison.html").write_text(page, encoding="utf-8")


def have_roc(arms: Sequence[Arm]) -> bool:
    """Whether the ROC curves of the arms' first runs are still there, and a class has one in all of them."""
    kept = [arm.runs[0].roc for arm in arms]
    return None not in kept and not np.all(np.any([np.isnan(roc["fpr"]).any(axis=1) for roc in kept], axis=0))


def have_same_samples(arms: Sequence[Arm]) -> bool:
    """Whether the samples of the arms' first runs are still there, and are the same test images."""
    kept = [arm.runs[0].samples for arm in arms]
    return None not in kept and all(
        np.array_equal(samples[key], kept[0][key]) for samples in kept for key in ("pixel_values", "labels", "palette")
    )
