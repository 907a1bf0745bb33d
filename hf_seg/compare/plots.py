"""The pictures of a comparison: curves, accuracy against cost, confusion matrices, the same images for all."""

import os
from collections.abc import Iterator, Sequence
from textwrap import fill

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from hf_seg.compare import Arm, mean_iou
from hf_seg.runs.figure import FAINT, INK, WIDTH, open_figure, shorten
from hf_seg.runs.plots import COLOURS, DASHES

COLUMNS = 3  # confusion matrices in a row
MOST_ARMS = 6  # beside an image and its truth
MARKERS = "o^s"  # one for each of the dashes
LEGEND_LINE = 0.19  # inches


def looks(index: int) -> dict:
    """Colour and dashes of an arm, the same in all pictures."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def labels(arms: Sequence[Arm]) -> list[str]:
    """The arms' names without the words that all of them begin with, such as the data set's."""
    words = [arm.name.split("-") for arm in arms]
    shared = 0
    while all(len(own) > shared + 1 and own[shared] == words[0][shared] for own in words):
        shared += 1
    return [shorten("-".join(own[shared:]), 44) for own in words]


def legend_height(arms: Sequence[Arm]) -> float:
    """Inches that a legend of two columns takes."""
    return LEGEND_LINE * -(-len(arms) // 2)


def mean_and_range(arm: Arm, key: str) -> Iterator[tuple[float, float, float, float]]:
    """Of each epoch that has the value: epoch, mean over seeds, least and greatest."""
    values: dict[float, list[float]] = {}
    for run in arm.runs:
        for entry in run.results["train"]["history"]:
            if entry.get(key) is not None:
                values.setdefault(entry["epoch"], []).append(entry[key])
    return ((epoch, float(np.mean(own)), min(own), max(own)) for epoch, own in sorted(values.items()))


def use_log_scale(axes) -> None:
    """A logarithmic x axis that says 0.01 and 100, not powers of ten in markup that is not rendered."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plot_learning(arms: Sequence[Arm], path: str | os.PathLike) -> None:
    """Draw training loss and validation mIoU over the epochs: a line an arm, with the range of its seeds.

    Args:
        arms (`Sequence[Arm]`): what is compared.
        path (`str` or `os.PathLike`): the PNG to write.
    """
    with open_figure(path, height=3.4 + legend_height(arms), layout="constrained") as figure:
        left, right = figure.subplots(1, 2)
        for index, (arm, label) in enumerate(zip(arms, labels(arms), strict=True)):
            for axes, key in ((left, "loss"), (right, "eval_mean_iou")):
                if points := [*mean_and_range(arm, key)]:
                    epochs, means, least, greatest = zip(*points, strict=True)
                    axes.plot(epochs, means, linewidth=1.4, label=label if axes is left else None, **looks(index))
                    axes.fill_between(epochs, least, greatest, color=looks(index)["color"], alpha=0.2, linewidth=0)
        left.set(title="Training loss", ylabel="loss")
        left.set_ylim(bottom=0)
        right.set(title="Mean IoU on validation", ylabel="mIoU")
        for axes in (left, right):
            axes.set(xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower left", ncols=2)


def plot_cost(arms: Sequence[Arm], path: str | os.PathLike) -> None:
    """Draw test mIoU over multiply-adds an image and, where all ran on the same hardware, over images a second.

    A point an arm; bars are standard deviations over seeds.

    Args:
        arms (`Sequence[Arm]`): what is compared.
        path (`str` or `os.PathLike`): the PNG to write.
    """
    costs = [("multiply-adds an image, × 10⁹", lambda r: r["model"]["multiply_adds"] / 1e9)]
    if len({hardware for arm in arms for hardware in arm.hardware}) == 1:
        costs.append(("images a second in training", lambda r: r["train"]["images_per_second"]))
    with open_figure(path, height=3.4 + legend_height(arms), layout="constrained") as figure:
        panels = figure.subplots(1, len(costs), sharey=True, squeeze=False).ravel()
        for axes, (name, cost) in zip(panels, costs, strict=True):
            for index, (arm, label) in enumerate(zip(arms, labels(arms), strict=True)):
                axes.errorbar(
                    arm.mean(cost),
                    arm.mean(mean_iou),
                    yerr=arm.deviation(mean_iou),
                    marker=MARKERS[index // len(COLOURS) % len(MARKERS)],
                    capsize=3,
                    color=looks(index)["color"],
                    linestyle="none",
                    label=label if axes is panels[0] else None,
                )
            values = [arm.mean(cost) for arm in arms]
            if max(values) > 4 * min(values):
                use_log_scale(axes)
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.set(xlabel=name)
            axes.margins(0.15)
        panels[0].set(title="Accuracy against cost", ylabel="test mIoU")
        figure.legend(loc="outside lower left", ncols=2)


def plot_roc_side_by_side(arms: Sequence[Arm], class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Draw the ROC curves of each class against the rest: a panel a class, a line an arm, its first run's.

    Args:
        arms (`Sequence[Arm]`): their first runs have `roc`.
        class_names (`Sequence[str]`): in the order of the ids.
        path (`str` or `os.PathLike`): the PNG to write.
    """
    curves = [arm.runs[0].roc for arm in arms]
    shown = [index for index in range(len(class_names)) if not any(np.isnan(c["fpr"][index]).any() for c in curves)]
    columns = COLUMNS if len(shown) <= 2 * COLUMNS else 5
    rows = -(-len(shown) // columns)
    height = 0.5 + rows * WIDTH / columns + legend_height(arms)
    with open_figure(path, height, layout="constrained") as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        for number, (axes, index) in enumerate(zip(grid, shown, strict=False)):
            for arm_number, (label, curve) in enumerate(zip(labels(arms), curves, strict=True)):
                label = label if number == 0 else None
                axes.plot(curve["fpr"][index], curve["tpr"][index], linewidth=1.2, label=label, **looks(arm_number))
            use_log_scale(axes)
            axes.set(xlim=(1e-3, 1), ylim=(0, 1.01))  # what matters is in the first per cent
            axes.set_title(shorten(class_names[index], 18), fontsize=8)
            if number % columns == 0:
                axes.set_ylabel("true positive rate", fontsize=8)
            if number + columns >= len(shown):
                axes.set_xlabel("false positive rate", fontsize=8)
                axes.tick_params(labelbottom=True)
        figure.legend(loc="outside lower left", ncols=2)


def plot_confusions(arms: Sequence[Arm], class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Draw the arms' test confusion matrices, seeds added up, each row as shares of its true class.

    Args:
        arms (`Sequence[Arm]`): what is compared.
        class_names (`Sequence[str]`): in the order of the ids.
        path (`str` or `os.PathLike`): the PNG to write.
    """
    rows, count = -(-len(arms) // COLUMNS), len(class_names)
    names = [shorten(name, 14) for name in class_names]
    with open_figure(path, height=0.4 + 2.9 * rows) as figure:
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes in grid[len(arms) :]:
            axes.set_visible(False)
        for number, (axes, arm, label) in enumerate(zip(grid, arms, labels(arms), strict=False)):
            matrix = np.sum([run.results["test"]["confusion_matrix"] for run in arm.runs], axis=0)
            totals = matrix.sum(axis=1, keepdims=True)
            shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
            picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            if count <= 5:
                for (row, column), share in np.ndenumerate(shares):
                    if not np.isnan(share):
                        ink = "white" if share > 0.6 else INK
                        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=ink)
            size = 8 if count <= 5 else 5
            axes.set_xticks(range(count), names, rotation=90, fontsize=size)
            axes.set_yticks(range(count), names if number % COLUMNS == 0 else [""] * count, fontsize=size)
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(fill(label, 30), fontsize=8)
        grid[0].set_ylabel("true class", color=FAINT)
        figure.colorbar(picture, ax=[*grid[: len(arms)]], format=PercentFormatter(xmax=1), aspect=35, shrink=0.8)


def plot_same_images(arms: Sequence[Arm], path: str | os.PathLike) -> None:
    """Draw some test images, their true masks, and the masks that the first run of each arm predicts, up to six.

    Args:
        arms (`Sequence[Arm]`): their first runs have `samples`, of the same images.
        path (`str` or `os.PathLike`): the PNG to write.
    """
    arms = arms[:MOST_ARMS]
    shown = arms[0].runs[0].samples
    palette = np.append(shown["palette"], [(128, 128, 128)], axis=0)  # grey: ignored

    def colour(masks: np.ndarray) -> np.ndarray:
        return palette[np.minimum(masks, len(palette) - 1)]

    columns = {
        "image": np.moveaxis(shown["pixel_values"], 1, -1),
        "truth (grey: ignored)" if shown["labels"].max() >= len(palette) - 1 else "truth": colour(shown["labels"]),
        **{
            fill(label, 15): colour(arm.runs[0].samples["predictions"])
            for arm, label in zip(arms, labels(arms), strict=True)
        },
    }
    count = len(shown["labels"])
    height, width = shown["labels"].shape[1:]
    with open_figure(path, height=0.7 + count * (WIDTH / len(columns)) * height / width) as figure:
        grid = figure.subplots(count, len(columns), squeeze=False)
        for column, (title, pictures) in enumerate(columns.items()):
            for axes, picture in zip(grid[:, column], pictures, strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            grid[0, column].set_title(title, fontsize=7)
