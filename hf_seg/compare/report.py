"""The report of a comparison: Markdown with plots beside it, and a single HTML file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_seg.compare import LEVEL, RESAMPLES, Arm, Comparison, look_up, verdict
from hf_seg.compare.plots import plot_confusions, plot_cost, plot_learning, plot_roc_side_by_side, plot_same_images
from hf_seg.runs.page import PAGES, check_folder_of, describe_input, generator, write_page

PAGE = "comparison.html"
PICTURES = CONFUSIONS, LEARNING, COST, ROC, SAME_IMAGES = [
    f"{name}.png" for name in ("confusions", "learning", "cost", "roc", "same_images")
]


def build_report(
    comparison: Comparison, pictures: Mapping[str, str] | None = None, template: str = "comparison.md.jinja"
) -> str:
    """Render the report. `pictures` maps names of the plots of [`write_report`] to their paths or data URLs."""
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
        mark=generator("compare"),
        verdict=verdict,
        show=_show,
    )


def _ceilings(arms: Sequence[Arm]) -> dict[str, float]:
    """The highest mIoU that masks of each size can reach at the pictures' own size, of all arms, largest first."""
    found = {}
    for arm in arms:
        resize = arm.runs[0].recipe["data"]["resize"]
        for size, value in look_up(arm.runs[0].results, ("test", "native", "ceilings")).items():
            shown = size.replace("x", "×") if "x" in size else f"{size}×{size}"
            found[shown if resize == "stretch" else f"{shown}, {resize}"] = value
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _show(arm: Arm, *keys: str, form: str = ".4f", unit: float = 1) -> str:
    """Format the mean over seeds of the value under `keys` in `results.json`, in units of `unit`, and the standard
    deviation if there are several seeds."""
    if None in arm.values(*keys):
        return "–"  # such as a class that does not occur, or a training value of an evaluation
    mean, deviation = arm.mean(*keys) / unit, arm.deviation(*keys)
    return format(mean, form) if deviation is None else f"{mean:{form}} ± {deviation / unit:{form}}"


def check_out(folder: Path) -> None:
    """Refuse a folder that is not empty and does not hold a report, or cannot be written to."""
    check_folder_of(folder / PAGE, "compare")


def write_report(comparison: Comparison, folder: Path) -> None:
    """Write `comparison.md` with its plots beside it, and `comparison.html` with the plots embedded. Plots of an
    earlier report in the folder are removed.

    Raises:
        Refusal: as [`check_out`].
    """
    check_out(folder)
    # first, so that the folder of a report that was interrupted is recognised
    write_page(f"{generator('compare')}\n<p>The report is incomplete. Run the command again.</p>\n", folder / PAGE)
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)
    arms = comparison.arms
    class_names = arms[0].runs[0].results["data"]["class_names"]
    plot_confusions(arms, class_names, folder / CONFUSIONS)
    if not all(arm.evaluated for arm in arms):
        plot_learning(arms, folder / LEARNING)
    if not any(None in arm.values("model", "multiply_adds") for arm in arms):
        plot_cost(arms, folder / COST)
    if have_roc(arms):
        plot_roc_side_by_side(arms, class_names, folder / ROC)
    if have_same_samples(arms):
        plot_same_images(arms, folder / SAME_IMAGES)
    pictures = [name for name in PICTURES if (folder / name).exists()]
    encoded = {name: base64.b64encode((folder / name).read_bytes()).decode() for name in pictures}
    inside = {name: f"data:image/png;base64,{data}" for name, data in encoded.items()}
    text = build_report(comparison, dict(zip(pictures, pictures, strict=True)))
    page = build_report(comparison, inside, "comparison.html.jinja")
    write_page(text, folder / "comparison.md")
    write_page(page, folder / PAGE)


def have_roc(arms: Sequence[Arm]) -> bool:
    """Whether the first run of each arm still has its ROC curves, and some class has a curve in all of them."""
    kept = [arm.runs[0].roc for arm in arms]
    return None not in kept and not np.all(np.any([np.isnan(roc["fpr"]).any(axis=1) for roc in kept], axis=0))


def have_same_samples(arms: Sequence[Arm]) -> bool:
    """Whether the first run of each arm still has its samples, and these are of the same test images."""
    kept = [arm.runs[0].samples for arm in arms]
    return None not in kept and all(
        np.array_equal(samples[key], kept[0][key]) for samples in kept for key in ("pixel_values", "labels", "palette")
    )
