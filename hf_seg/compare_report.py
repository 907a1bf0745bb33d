"""A comparison of runs as a Markdown report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hf_seg.compare import LEVEL, RESAMPLES, Arm, Comparison, mean_iou, verdict

Value = Callable[[dict[str, Any]], float]


def as_markdown(comparison: Comparison) -> str:
    """The report: what was compared, scores, what the differences allow to be said, classes, cost."""
    arms, first = comparison.arms, comparison.arms[0].runs[0].results
    data, size = first["data"], first["recipe"]["data"]["image_size"]
    parts = [
        "# Comparison",
        f"{data['title']}, {data['counts']['test']:,} test images at {size}×{size} pixels (fingerprint "
        f"`{data['fingerprint']}`). Each run was tested once, with its best checkpoint by validation mIoU. Where "
        "there are several seeds, the numbers are means ± standard deviations over them.",
        *comparison.notes,
        "## Scores",
        table(["run", "seeds", "test mIoU", "mean accuracy", "pixel accuracy", "validation mIoU"], map(scores, arms)),
        "## What the differences say",
        "\n".join(f"- {verdict(difference)}" for difference in comparison.differences),
        f"Intervals: paired percentile bootstrap over test images, {RESAMPLES:,} resamples, level {LEVEL:.0%}. They "
        "say how much a difference hangs on which images were tested, for these trained models. How much trainings "
        "scatter is what seeds show.",
        "## IoU of each class",
        table(["class", *(arm.name for arm in arms)], class_rows(arms, data["class_names"])),
        "## Cost",
        table(
            [
                "run",
                "parameters",
                "multiply-adds an image",
                "images/s in training",
                "minutes",
                "processes",
                "hardware",
            ],
            map(costs, arms),
        ),
        "## First weights",
        table(["run", "encoder", "head", "encoder frozen"], map(first_weights, arms)),
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def over_seeds(arm: Arm, value: Value, form: str) -> str:
    """Mean, and deviation where there are several seeds."""
    text, deviation = format(arm.mean(value), form), arm.deviation(value)
    return text if deviation is None else f"{text} ± {deviation:{form}}"


def scores(arm: Arm) -> list[str]:
    return [
        arm.name,
        ", ".join(str(run.seed) for run in arm.runs),
        over_seeds(arm, mean_iou, ".4f"),
        over_seeds(arm, lambda r: r["test"]["mean_accuracy"], ".4f"),
        over_seeds(arm, lambda r: r["test"]["overall_accuracy"], ".4f"),
        over_seeds(arm, lambda r: r["validation"]["mean_iou"], ".4f"),
    ]


def class_rows(arms: Sequence[Arm], class_names: Sequence[str]) -> list[list[str]]:
    def cell(arm: Arm, name: str) -> str:
        if any(name not in run.results["test"]["per_category_iou"] for run in arm.runs):
            return "–"  # neither in the truth nor predicted
        return over_seeds(arm, lambda r: r["test"]["per_category_iou"][name], ".4f")

    return [[name, *(cell(arm, name) for arm in arms)] for name in class_names]


def costs(arm: Arm) -> list[str]:
    model = arm.runs[0].results["model"]
    hardware = {f"{run.results['environment']['hardware']}, {run.results['train']['precision']}" for run in arm.runs}
    return [
        arm.name,
        f"{model['parameters'] / 1e6:.2f} M",
        f"{model['multiply_adds'] / 1e9:.2f} G",
        over_seeds(arm, lambda r: r["train"]["images_per_second"], ".1f"),
        over_seeds(arm, lambda r: r["train"]["seconds"] / 60, ".1f"),
        ", ".join(sorted({str(run.results["train"]["world_size"]) for run in arm.runs})),
        "; ".join(sorted(hardware)),
    ]


def first_weights(arm: Arm) -> list[str]:
    init = arm.runs[0].results["model"]["init"]
    return [arm.name, init["encoder"]["source"], init["head"]["source"], "yes" if init["frozen"] else "no"]
