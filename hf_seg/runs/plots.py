"""The four pictures of a run: curves, confusion matrix, ROC and predicted masks.

Every `plot_` function takes plain numbers, class names in the order of their ids, and the path of the PNG to write.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hf_seg.runs.figure import (
    COLOURS,
    FAINT,
    IGNORED_STRIPES,
    INK,
    WIDTH,
    class_legend,
    colour_masks,
    draw_columns,
    line_look,
    open_figure,
    shorten,
)
from hf_seg.scoring.confusion import confusion_per_image, mean_iou

TRAIN, VALIDATION = COLOURS[:2]


def plot_curves(history: Sequence[Mapping], path: Path, loss: str = "cross-entropy") -> None:
    """Draw the losses, and the validation mIoU with its best epoch marked, over the epochs.

    Args:
        history (`list[dict]`): `Trainer.state.log_history`. Entries with `epoch` and `loss` are training; those with
            `eval_loss` and `eval_mean_iou` are validation. All others (`test_*`, the closing summary) are left out.
        loss (`str`): name of the training loss; the validation loss is always cross-entropy.
    """
    train, validation, scores = (_series(history, key) for key in ("loss", "eval_loss", "eval_mean_iou"))
    alike = loss == "cross-entropy"
    measured = scores[np.isfinite(scores[:, 1])]
    losses = np.concatenate([train[:, 1], validation[:, 1]])
    with open_figure(path, height=3.6, layout="constrained") as figure:
        left, right = figure.subplots(1, 2)
        for axes, series, name, colour in (
            (left, train, "train" if alike else f"train: {fill(loss, 24)}", TRAIN),
            (left, validation, "validation" if alike else "validation: cross-entropy", VALIDATION),
            (right, scores, None, VALIDATION),
        ):
            if len(series):
                # Markers show where a value was measured; after a single epoch, only they are visible.
                marker = "o" if len(series) <= 60 else None
                axes.plot(*series.T, color=colour, label=name, marker=marker, markersize=3, linewidth=1.5)
            elif axes is right:
                axes.text(0.5, 0.5, "no validation in this run", color=FAINT, ha="center", transform=axes.transAxes)
        if len(measured):
            epoch, score = measured[measured[:, 1].argmax()]  # the first of equal scores, as Trainer chooses
            for axes, name in ((left, "best mIoU"), (right, None)):
                axes.axvline(epoch, color=FAINT, linewidth=1, linestyle=(0, (3, 2)), zorder=1, label=name)
            name = f"best: {score:.3f} (epoch {epoch:g})"
            right.plot([epoch], [score], "*", markersize=11, color=INK, linestyle="none", label=name, zorder=3)
            low, high = measured[:, 1].min() - 0.01, measured[:, 1].max() + 0.01
            right.set_ylim(max(0, np.floor(low * 10) / 10), min(1.01, np.ceil(high * 10) / 10))
        else:
            right.set_ylim(0, 1.01)
        left.set_ylim(0, 1.08 * losses[np.isfinite(losses)].max(initial=0) or 1)
        left.set(title="Loss", ylabel="cross-entropy" if alike else None)
        right.set(title="Mean IoU on validation", ylabel="mIoU")
        last_epoch = np.concatenate([train, validation, scores])[:, 0].max()
        for axes, corner in ((left, "best"), (right, "lower right")):
            axes.set(xlabel="epoch", xlim=(0, 1.03 * last_epoch))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc=corner, frameon=True, framealpha=1, edgecolor="none")  # hides the dashed line


def _series(history: Sequence[Mapping], key: str) -> np.ndarray:
    """The (epoch, value) rows of the entries that hold `key`; a value of None is NaN, which leaves a gap."""
    rows = [(entry["epoch"], entry[key]) for entry in history if key in entry and "epoch" in entry]
    return np.array(rows, dtype=float).reshape(-1, 2)


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, each row as shares of its true class.

    Args:
        matrix (`np.ndarray` of shape `(classes, classes)`, integers): pixel counts; rows are the truth, columns the
            prediction. A row of zeros (a class that does not occur in the truth) is hatched.
    """
    count = len(matrix)
    few = count <= 8  # room for a decimal; otherwise whole per cent, and no number where that would be 0
    notes = ["per cent of the pixels of each true class"]
    if 8 < count <= 20:
        notes.append("empty cell: below 0.5")
    if not matrix.sum(axis=1).all():
        notes.append("hatched: not in the truth")

    with open_figure(path, height=5.6 if few else 7.2) as figure:
        axes = figure.add_subplot()
        picture = draw_confusion(axes, matrix, ".1f" if few else ".0f" if count <= 20 else None, 10 if few else 8)
        ticks = np.arange(0, count, -(-count // 40))  # at most 40 names fit beside each other
        names = [shorten(class_names[tick]) for tick in ticks]
        label_size = 9 if few else 8 if count <= 20 else 7
        upright = few and max(map(len, names)) * count <= 60
        axes.set_xticks(ticks, names, fontsize=label_size, rotation=0 if upright else 90)
        axes.set_yticks(ticks, names, fontsize=label_size)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1 if count <= 40 else 0)
        axes.tick_params(which="minor", length=0)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title("Confusion matrix\n", pad=8)
        axes.text(0, 1.01, " · ".join(notes), transform=axes.transAxes, fontsize=8, color=FAINT, va="bottom")
        bar = figure.colorbar(picture, ax=axes, format=PercentFormatter(xmax=1), pad=0.02, aspect=35)
        bar.outline.set_visible(False)


def draw_confusion(axes: Axes, matrix: np.ndarray, form: str | None, size: float) -> AxesImage:
    """Draw a matrix as [`plot_confusion`] does, without names. `form` is the format of the numbers in per cent (None:
    no numbers), `size` their font size. Return the image, for a colour bar."""
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for row in np.flatnonzero(totals == 0):
        look = {"facecolor": "white", "edgecolor": "#C8C8C8", "hatch": "////", "linewidth": 0}
        axes.add_patch(Rectangle((-0.5, row - 0.5), len(matrix), 1, **look))
    for (row, column), share in np.ndenumerate(shares if form else ()):
        look = {"ha": "center", "va": "center", "fontsize": size}
        if np.isnan(share):
            box = {"boxstyle": "square,pad=0.25", "facecolor": "white", "edgecolor": "none"}
            axes.text(column, row, "–", bbox=box, **look)
        elif len(matrix) <= 8 or share >= 0.005:
            axes.text(column, row, format(100 * share, form), color="white" if share > 0.6 else INK, **look)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return picture


def plot_roc(roc: Mapping[str, Mapping], path: Path) -> None:
    """Draw one ROC curve per class (the class against all others); the legend is sorted by the area under it.

    Args:
        roc (`dict[str, dict]`): class name to `fpr` and `tpr`, lists of one length in [0, 1], and `auc` in [0, 1].
            A class whose `auc` is None or NaN (no positive or no negative pixel) is listed as absent.
    """
    looks = {name: {"linewidth": 1.6, **line_look(index)} for index, name in enumerate(roc)}
    absent = [name for name, entry in roc.items() if entry["auc"] is None or np.isnan(entry["auc"])]
    present = sorted((name for name in roc if name not in absent), key=lambda name: -roc[name]["auc"])
    curves = {name: np.array([roc[name]["fpr"], roc[name]["tpr"]]) for name in present}
    handles, labels = [], []
    with open_figure(path, height=max(5.4, 0.19 * len(roc) + 1.2), layout="constrained") as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#AAAAAA", linewidth=1, zorder=1)
        for name, curve in curves.items():
            handles += axes.plot(*curve, **looks[name])
            labels.append(f"{roc[name]['auc']:.3f}  {shorten(name)}")
        for name in absent:
            handles.append(Line2D([], [], linestyle="none"))
            labels.append(f"absent  {shorten(name)}")
        handles.append(Line2D([], [], color="#AAAAAA", linewidth=1))
        labels.append("0.500  chance")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false positive rate", ylabel="true positive rate")
        axes.set(title="ROC of each class against the rest", aspect="equal", anchor="NW")
        good = sum(roc[name]["auc"] > 0.9 for name in present)
        if good > 1 and not any(np.any((fpr > 0.5) & (tpr < 0.5)) for fpr, tpr in curves.values()):
            # Good curves are all close to the upper left corner; an enlarged view of it fits below the diagonal.
            zoom = axes.inset_axes((0.55, 0.06, 0.42, 0.42), xlim=(0, 0.2), ylim=(0.8, 1))
            for name, curve in curves.items():
                zoom.plot(*curve, **looks[name])
            zoom.set(xticks=(0, 0.1, 0.2), yticks=(0.8, 0.9, 1))
            zoom.tick_params(labelsize=7)
            zoom.set_title("upper left corner", fontsize=8, fontweight="normal")
            axes.add_patch(Rectangle((0, 0.8), 0.2, 0.2, fill=False, edgecolor=FAINT, linewidth=0.8))
        legend = axes.legend(handles, labels, title="AUC", loc="upper left", bbox_to_anchor=(1.02, 1), handlelength=3)
        legend.set_alignment("left")


def plot_samples(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    ignore_index: int,
    path: Path,
) -> None:
    """Draw images beside their true and their predicted masks, one row per image. Arrays may be tensors.

    Args:
        images (`np.ndarray` of shape `(samples, 3, height, width)`, floats): RGB in [0, 1].
        labels (`np.ndarray` of shape `(samples, height, width)`, integers): class ids, or `ignore_index` (striped).
        predictions (`np.ndarray` of shape `(samples, height, width)`, integers): class ids.
        palette (`Sequence[tuple[int, int, int]]`): one RGB colour in 0..255 per class.
        ignore_index (`int`): the label of pixels without truth; they do not count in the row's mIoU.
    """
    labels, predictions, colours = np.asarray(labels), np.asarray(predictions), np.array(palette)
    confusion = confusion_per_image(
        torch.from_numpy(predictions), torch.from_numpy(labels), len(class_names), ignore_index
    )
    ignored = labels == ignore_index
    counted = [values.ravel() for values in (labels[~ignored], predictions)]
    areas = sum(np.bincount(values, minlength=len(class_names)) for values in counted)
    dark, light = (np.array(stripe) / 255 for stripe in IGNORED_STRIPES)
    striped = Patch(facecolor=dark, edgecolor=light, hatch="/////", linewidth=0)
    legend = class_legend(areas, class_names, colours, striped if ignored.any() else None)
    columns = [
        np.moveaxis(np.asarray(images), 1, -1).astype(np.float32).clip(0, 1),
        colour_masks(labels, colours, ignored),
        colour_masks(predictions, colours, np.zeros_like(ignored)),
    ]
    samples, height, width = labels.shape
    row_height = 0.32 * WIDTH * height / width + 0.26
    legend_height = 0.2 * -(-len(legend["handles"]) // legend["ncols"]) + 0.2
    with open_figure(path, height=0.1 + samples * row_height + legend_height) as figure:
        grid = draw_columns(figure, ["image", "truth", "prediction"], columns)
        for axes, score in zip(grid[:, 2], mean_iou(confusion.numpy()), strict=True):
            axes.set_xlabel("nothing to score" if np.isnan(score) else f"mIoU {score:.2f}", fontsize=8, loc="right")
        figure.legend(**legend)
