"""The plots of a comparison: learning and ROC curves, accuracy against cost, confusion matrices, sample images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from textwrap import fill

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from hf_seg.compare import OF_INPUT, Arm, look_up
from hf_seg.runs.figure import COLOURS, FAINT, WIDTH, colour_masks, draw_columns, line_look, open_figure, shorten
from hf_seg.runs.page import describe_input
from hf_seg.runs.plots import draw_confusion

COLUMNS = 3  # confusion matrices per row
MOST_ARMS = 6  # shown beside an image and its true mask
MARKERS = "o^s"  # the next one for each round through the colours
LEGEND_LINE = 0.19  # inches; height of a line of the legend


def labels(names: Sequence[str]) -> list[str]:
    """Short names of arms: without the "-"-separated words that all begin with, such as the data set's name."""
    words = [name.split("-") for name in names]
    shared = 0
    while all(len(own) > shared + 1 and own[shared] == words[0][shared] for own in words):
        shared += 1
    return [shorten("-".join(own[shared:]), 44) for own in words]


def point_look(index: int) -> dict:
    """Colour and marker of an arm that is drawn as a point."""
    marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
    return {"color": line_look(index)["color"], "marker": marker, "linestyle": "none"}


@contextmanager
def open_figure_of_arms(names: Sequence[str], path: Path, height: float, look=line_look) -> Iterator[Figure]:
    """Open a figure `height` inches high, plus a legend of the arms in two columns below it."""
    with open_figure(path, height + LEGEND_LINE * -(-len(names) // 2), layout="constrained") as figure:
        yield figure
        # pass handles: if matplotlib collects them itself, it leaves out labels that begin with "_"
        handles = [Line2D([], [], **look(index)) for index in range(len(names))]
        figure.legend(handles, labels(names), loc="outside lower left", ncols=2)


def mean_and_range(arm: Arm, key: str) -> Iterator[tuple[float, float, float, float]]:
    """Yield epoch, mean over seeds, least and greatest value for each epoch that has the value `key`."""
    values: dict[float, list[float]] = {}
    for run in arm.runs:
        for entry in look_up(run.results, ("train", "history")) or ():
            if entry.get(key) is not None:
                values.setdefault(entry["epoch"], []).append(entry[key])
    return ((epoch, float(np.mean(own)), min(own), max(own)) for epoch, own in sorted(values.items()))


def use_log_scale(axes) -> None:
    """Make the x axis logarithmic, with labels such as 0.01 and 100: the markup of powers of ten is not rendered."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plot_learning(arms: Sequence[Arm], path: Path) -> None:
    """Draw training loss and validation mIoU over the epochs: one line per arm, with the range of its seeds."""
    with open_figure_of_arms([arm.name for arm in arms], path, height=3.4) as figure:
        left, right = figure.subplots(1, 2)
        for axes, key in ((left, "loss"), (right, "eval_mean_iou")):
            for index, arm in enumerate(arms):
                epochs, means, least, greatest = np.reshape([*mean_and_range(arm, key)], (-1, 4)).T
                marker = "o" if len(epochs) == 1 else None  # a line through one point is invisible
                axes.plot(epochs, means, linewidth=1.4, marker=marker, **line_look(index))
                axes.fill_between(epochs, least, greatest, color=line_look(index)["color"], alpha=0.2, linewidth=0)
            axes.set(xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        left.set(title="Training loss", ylabel="loss")
        left.set_ylim(bottom=0)
        right.set(title="Mean IoU on validation", ylabel="mIoU")


def plot_cost(arms: Sequence[Arm], path: Path) -> None:
    """Draw the compared mIoU over multiply-adds per image and, if all used the same hardware, over images per second.

    Each arm is a point; bars are standard deviations over seeds. If inputs differ, each point is labelled with its
    input, and arms of the same name are joined by a line.
    """
    costs = {"multiply-adds per image, × 10⁹": (1e9, "model", "multiply_adds")}
    if len({hardware for arm in arms for hardware in arm.hardware}) == 1 and not any(arm.evaluated for arm in arms):
        costs["images per second, validation included"] = (1, "train", "images_per_second")
    lines: dict[str, list[Arm]] = {}
    same_input = arms[0].place == OF_INPUT
    for arm in arms:
        lines.setdefault(arm.runs[0].arm, []).append(arm)
    with open_figure_of_arms([*lines], path, height=3.4, look=point_look) as figure:
        panels = figure.subplots(1, len(costs), sharey=True, squeeze=False).ravel()
        for axes, (name, (unit, *keys)) in zip(panels, costs.items(), strict=True):
            values = {arm.name: arm.mean(*keys) / unit for arm in arms}
            for index, members in enumerate(lines.values()):
                members = sorted(members, key=lambda arm: values[arm.name])
                place = [values[arm.name] for arm in members], [fmean(arm.scores) for arm in members]
                deviations = [arm.deviation(*arm.place, "mean_iou") or 0 for arm in members]
                look = point_look(index) | ({"linestyle": "-"} if len(members) > 1 else {})
                axes.errorbar(*place, yerr=deviations if any(deviations) else None, capsize=3, **look)
                for arm, *point in () if same_input else zip(members, *place, strict=True):
                    said = describe_input(arm.runs[0].recipe["data"])
                    axes.annotate(said, point, (5, 4), textcoords="offset points", fontsize=6)
            if max(values.values()) > 4 * min(values.values()):
                use_log_scale(axes)
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.set(xlabel=name)
            axes.margins(0.15)
        at = "" if same_input else " at the photographs' own size"
        panels[0].set(title="Accuracy against cost", ylabel=f"test mIoU{at}")


def plot_roc_side_by_side(arms: Sequence[Arm], class_names: Sequence[str], path: Path) -> None:
    """Draw ROC curves of each class against the rest, one panel per class. The arms' first runs must have `roc`."""
    curves = [arm.runs[0].roc for arm in arms]
    shown = [index for index in range(len(class_names)) if not any(np.isnan(c["fpr"][index]).any() for c in curves)]
    columns = COLUMNS if len(shown) <= 2 * COLUMNS else 5
    rows = -(-len(shown) // columns)
    with open_figure_of_arms([arm.name for arm in arms], path, height=0.5 + rows * WIDTH / columns) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        for number, (axes, index) in enumerate(zip(grid, shown, strict=False)):
            for arm_number, curve in enumerate(curves):
                axes.plot(curve["fpr"][index], curve["tpr"][index], linewidth=1.2, **line_look(arm_number))
            use_log_scale(axes)
            axes.set(xlim=(1e-3, 1), ylim=(0, 1.01))  # most differences are below a false positive rate of 1 %
            axes.set_title(shorten(class_names[index], 18), fontsize=8)
            if number % columns == 0:
                axes.set_ylabel("true positive rate", fontsize=8)
            if number + columns >= len(shown):
                axes.set_xlabel("false positive rate", fontsize=8)
                axes.tick_params(labelbottom=True)


def plot_confusions(arms: Sequence[Arm], class_names: Sequence[str], path: Path) -> None:
    """Draw each arm's test confusion matrix, summed over seeds, each row as shares of its true class."""
    rows, count = -(-len(arms) // COLUMNS), len(class_names)
    names = [shorten(name, 14) for name in class_names]
    size = 8 if count <= 5 else 5
    with open_figure(path, height=0.4 + 2.9 * rows) as figure:
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes in grid[len(arms) :]:
            axes.set_visible(False)
        for number, (axes, arm, label) in enumerate(zip(grid, arms, labels([arm.name for arm in arms]), strict=False)):
            matrix = np.sum(arm.values("test", "confusion_matrix"), axis=0)
            picture = draw_confusion(axes, matrix, ".0f" if count <= 5 else None, size)
            axes.set_xticks(range(count), names, rotation=90, fontsize=size)
            axes.set_yticks(range(count), names if number % COLUMNS == 0 else [""] * count, fontsize=size)
            axes.set_title(fill(label, 30), fontsize=8)
        grid[0].set_ylabel("true class", color=FAINT)
        figure.colorbar(picture, ax=[*grid[: len(arms)]], format=PercentFormatter(xmax=1), aspect=35, shrink=0.8)


def plot_same_images(arms: Sequence[Arm], path: Path) -> None:
    """Draw test images, true masks and the masks of up to six arms. The first runs of the arms must have `samples` of
    the same images."""
    arms = arms[:MOST_ARMS]
    shown = arms[0].runs[0].samples
    truth, palette = shown["labels"], shown["palette"]
    ignored = truth >= len(palette)
    titles = ["image", "truth (striped: ignored)" if ignored.any() else "truth", *labels([arm.name for arm in arms])]
    titles = [fill(title, 15) for title in titles]
    columns = [np.moveaxis(shown["pixel_values"], 1, -1), colour_masks(truth, palette, ignored)]
    for arm in arms:
        predicted = arm.runs[0].samples["predictions"]
        columns.append(colour_masks(predicted, palette, predicted >= len(palette)))
    count, height, width = truth.shape
    row_height = (WIDTH / len(columns) - 0.16) * height / width + 0.12
    title_height = 0.32 + 0.12 * max(title.count("\n") for title in titles)
    with open_figure(path, height=title_height + count * row_height) as figure:
        draw_columns(figure, titles, columns, fontsize=7)
