"""The pictures of a comparison: curves, accuracy against cost, confusion matrices, the same images for all."""

import os
from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from hf_seg.compare import Arm, mean_iou
from hf_seg.figure import FAINT, INK, WIDTH, open_figure, shorten
from hf_seg.plots import COLOURS, DASHES

COLUMNS = 3  # confusion matrices in a row
MOST_ARMS = 6  # beside an image and its truth


def looks(index: int) -> dict:
    """Colour and dashes of an arm, the same in all pictures."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def plot_learning(arms: Sequence[Arm], path: str | os.PathLike) -> None:
    """Draw training loss and validation mIoU over the epochs: a line a run, a colour an arm.

    Args:
        arms (`Sequence[Arm]`): what is compared.
        path (`str` or `os.PathLike`): the PNG to write.
    """
    with open_figure(path, height=4.2, layout="constrained") as figure:
        left, right = figure.subplots(1, 2)
        for index, arm in enumerate(arms):
            for number, run in enumerate(arm.runs):
                history = run.results["train"]["history"]
                for axes, key in ((left, "loss"), (right, "eval_mean_iou")):
                    points = [(entry["epoch"], entry[key]) for entry in history if entry.get(key) is not None]
                    if points:
                        label = shorten(arm.name, 40) if axes is left and number == 0 else None
                        axes.plot(*zip(*points, strict=True), linewidth=1.4, label=label, **looks(index))
        left.set(title="Training loss", ylabel="loss")
        left.set_ylim(bottom=0)
        right.set(title="Mean IoU on validation", ylabel="mIoU")
        for axes in (left, right):
            axes.set(xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower left", ncols=2)


def plot_cost(arms: Sequence[Arm], path: str | os.PathLike) -> None:
    """Draw test mIoU over multiply-adds an image and over images a second in training: a point an arm.

    Bars are standard deviations over seeds.

    Args:
        arms (`Sequence[Arm]`): what is compared.
        path (`str` or `os.PathLike`): the PNG to write.
    """
    costs = (
        ("multiply-adds an image, × 10⁹", lambda r: r["model"]["multiply_adds"] / 1e9),
        ("images a second in training", lambda r: r["train"]["images_per_second"]),
    )
    with open_figure(path, height=4.2, layout="constrained") as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, (name, cost) in zip((left, right), costs, strict=True):
            for index, arm in enumerate(arms):
                axes.errorbar(
                    arm.mean(cost),
                    arm.mean(mean_iou),
                    yerr=arm.deviation(mean_iou),
                    marker="o",
                    capsize=3,
                    color=looks(index)["color"],
                    linestyle="none",
                    label=shorten(arm.name, 40) if axes is left else None,
                )
            values = [arm.mean(cost) for arm in arms]
            if max(values) > 4 * min(values):
                axes.set_xscale("log")
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set(xlabel=name)
            axes.margins(0.15)
        left.set(title="Accuracy against cost", ylabel="test mIoU")
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
    with open_figure(path, height=0.7 + rows * WIDTH / columns, layout="constrained") as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(shown) :]:
            axes.set_visible(False)
        for number, (axes, index) in enumerate(zip(grid, shown, strict=False)):
            for arm_number, (arm, curve) in enumerate(zip(arms, curves, strict=True)):
                label = shorten(arm.name, 40) if number == 0 else None
                axes.plot(curve["fpr"][index], curve["tpr"][index], linewidth=1.2, label=label, **looks(arm_number))
            axes.set(xscale="log", xlim=(1e-3, 1), ylim=(0, 1.01))  # what matters is in the first per cent
            axes.set_title(shorten(class_names[index], 18), fontsize=8)
        figure.supxlabel("false positive rate", fontsize=9)
        figure.supylabel("true positive rate", fontsize=9)
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
        for number, (axes, arm) in enumerate(zip(grid, arms, strict=False)):
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
            axes.set_title(shorten(arm.name, 30), fontsize=8)
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
        **{fill(shorten(arm.name, 50), 17): colour(arm.runs[0].samples["predictions"]) for arm in arms},
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
            grid[0, column].set_title(title, fontsize=8)
