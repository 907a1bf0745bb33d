"""The four pictures of a run: curves, confusion matrix, ROC and predicted masks.

Every function takes plain numbers and writes one PNG, 1200 pixels wide. Figures are built without pyplot: no display
is needed, the caller's backend and rcParams stay as they are, and a figure is freed as soon as it is saved.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hf_seg.runs.figure import FAINT, INK, MAX_LEGEND_CLASSES, WIDTH, open_figure, shorten

# Okabe and Ito's colours that are dark enough for a line on white: they stay apart for the colour-blind.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TRAIN, VALIDATION = COLOURS[:2]
# A class takes a new dash pattern once the colours are used up: 35 classes can be told apart.
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2, 1, 1.5, 1, 1.5)))

MAX_SAMPLES = 8
# Ignored pixels are striped, because some palettes have a class in every plain grey and in black.
IGNORED_STRIPES = ((48, 48, 48), (120, 120, 120))


def plot_curves(history: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Draw the losses, and the validation mIoU with its best epoch marked, over the epochs.

    Args:
        history (`list[dict]`): `Trainer.state.log_history`. Entries with `epoch` and `loss` are training; those with
            `eval_loss` and `eval_mean_iou` are validation. All others (`test_*`, the closing summary) are left out.
        path (`str` or `os.PathLike`): the PNG to write.

    Raises:
        ValueError: when no entry holds a training loss, a validation loss or a validation mIoU.
    """
    train, validation, mean_iou = (_series(history, key) for key in ("loss", "eval_loss", "eval_mean_iou"))
    if not len(train) + len(validation) + len(mean_iou):
        raise ValueError(
            f"history: none of its {len(history)} entries holds 'epoch' and one of 'loss', 'eval_loss', "
            "'eval_mean_iou'; pass trainer.state.log_history of a run that has trained"
        )
    last_epoch = max(series[-1, 0] for series in (train, validation, mean_iou) if len(series))
    scores = mean_iou[np.isfinite(mean_iou[:, 1])]

    losses = np.concatenate([train[:, 1], validation[:, 1]])
    highest_loss = losses[np.isfinite(losses)].max(initial=0)

    with open_figure(path, height=3.6, layout="constrained") as figure:
        left, right = figure.subplots(1, 2)
        for axes, series, name, colour in (
            (left, train, "train", TRAIN),
            (left, validation, "validation", VALIDATION),
            (right, mean_iou, None, VALIDATION),
        ):
            if len(series):
                # Markers show where a value was measured, and they are all there is to see after a single epoch.
                marker = "o" if len(series) <= 60 else None
                axes.plot(*series.T, color=colour, label=name, marker=marker, markersize=3, linewidth=1.5)
            elif axes is right:
                axes.text(0.5, 0.5, "no validation in this run", color=FAINT, ha="center", transform=axes.transAxes)
        if len(scores):
            epoch, score = scores[scores[:, 1].argmax()]  # the first of equals, as Trainer chooses
            for axes, name in ((left, "best mIoU"), (right, None)):
                axes.axvline(epoch, color=FAINT, linewidth=1, linestyle=(0, (3, 2)), zorder=1, label=name)
            name = f"best: {score:.3f} (epoch {epoch:g})"
            right.plot([epoch], [score], "*", markersize=11, color=INK, linestyle="none", label=name, zorder=3)
            low, high = scores[:, 1].min() - 0.01, scores[:, 1].max() + 0.01
            right.set_ylim(max(0, np.floor(low * 10) / 10), min(1.01, np.ceil(high * 10) / 10))
        else:
            right.set_ylim(0, 1.01)
        left.set_ylim(0, 1.08 * highest_loss or 1)
        left.set(title="Loss", ylabel="cross-entropy")
        right.set(title="Mean IoU on validation", ylabel="mIoU")
        for axes, corner in ((left, "best"), (right, "lower right")):
            axes.set(xlabel="epoch", xlim=(0, 1.03 * last_epoch))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc=corner, frameon=True, framealpha=1, edgecolor="none")  # hides the dashed line


def _series(history: Sequence[Mapping], key: str) -> np.ndarray:
    """The (epoch, value) rows of the entries that hold `key`; a value of None is NaN, which leaves a gap."""
    rows = [(entry["epoch"], entry[key]) for entry in history if key in entry and "epoch" in entry]
    return np.array(rows, dtype=float).reshape(-1, 2)


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: str | os.PathLike) -> None:
    """Draw a confusion matrix, each row as shares of its true class.

    Args:
        matrix (`np.ndarray` of shape `(classes, classes)`, integers): pixel counts; rows are the truth, columns the
            prediction. A row of zeros, a class that the truth does not hold, is hatched.
        class_names (`Sequence[str]`): one name a class, in the order of the ids.
        path (`str` or `os.PathLike`): the PNG to write.

    Raises:
        ValueError: when the matrix is not square, not of counts, or of another size than `class_names`.
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"matrix: expected shape (classes, classes), got {matrix.shape}")
    if not np.issubdtype(matrix.dtype, np.integer) or matrix.min() < 0:
        raise ValueError(
            f"matrix: expected pixel counts, integers of at least 0, got {matrix.dtype} from {matrix.min()}; "
            "rows are normalised here, not by the caller"
        )
    count = len(matrix)
    if len(class_names) != count:
        raise ValueError(f"class_names: expected one name for each of the {count} rows, got {len(class_names)}")

    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    absent = np.flatnonzero(totals == 0)
    few = count <= 8  # room for a decimal; otherwise whole per cent, and nothing where that would be 0
    notes = ["per cent of the pixels of each true class"]
    if 8 < count <= 20:
        notes.append("empty cell: below 0.5")
    if len(absent):
        notes.append("hatched: not in the truth")

    with open_figure(path, height=5.6 if few else 7.2) as figure:
        axes = figure.add_subplot()
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        for row in absent:
            looks = {"facecolor": "white", "edgecolor": "#C8C8C8", "hatch": "////", "linewidth": 0}
            axes.add_patch(Rectangle((-0.5, row - 0.5), count, 1, **looks))
        if count <= 20:
            size = 10 if few else 8
            for (row, column), share in np.ndenumerate(shares):
                if np.isnan(share):
                    box = {"boxstyle": "square,pad=0.25", "facecolor": "white", "edgecolor": "none"}
                    axes.text(column, row, "–", ha="center", va="center", fontsize=size, bbox=box)
                elif few or share >= 0.005:
                    text = f"{100 * share:.1f}" if few else f"{100 * share:.0f}"
                    ink = "white" if share > 0.6 else INK
                    axes.text(column, row, text, ha="center", va="center", fontsize=size, color=ink)
        ticks = np.arange(0, count, -(-count // 40))  # at most 40 names fit beside each other
        names = [shorten(class_names[tick]) for tick in ticks]
        label_size = 9 if few else 8 if count <= 20 else 7
        upright = few and max(map(len, names)) * count <= 60
        axes.set_xticks(ticks, names, fontsize=label_size, rotation=0 if upright else 90)
        axes.set_yticks(ticks, names, fontsize=label_size)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(visible=False)
        axes.grid(which="minor", color="white", linewidth=1 if count <= 40 else 0)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title("Confusion matrix\n", pad=8)
        axes.text(0, 1.01, " · ".join(notes), transform=axes.transAxes, fontsize=8, color=FAINT, va="bottom")
        bar = figure.colorbar(picture, ax=axes, format=PercentFormatter(xmax=1), pad=0.02, aspect=35)
        bar.outline.set_visible(False)


def plot_roc(roc: Mapping[str, Mapping], path: str | os.PathLike) -> None:
    """Draw one ROC curve a class (the class against all others), named in the order of the area under it.

    Args:
        roc (`dict[str, dict]`): class name to `fpr` and `tpr`, lists of one length in [0, 1], and `auc` in [0, 1].
            A class whose `auc` is None or NaN (no positive or no negative pixel) is listed as absent.
        path (`str` or `os.PathLike`): the PNG to write.

    Raises:
        ValueError: when `roc` is empty, or an entry misses a key, has lists of two lengths or a rate outside [0, 1].
    """
    if not roc:
        raise ValueError("roc: expected at least one class, got none")
    curves, absent = [], []
    for index, (name, entry) in enumerate(roc.items()):
        missing = {"fpr", "tpr", "auc"} - set(entry)
        if missing:
            raise ValueError(f"roc[{name!r}]: expected fpr, tpr and auc; missing: {', '.join(sorted(missing))}")
        if entry["auc"] is None or np.isnan(entry["auc"]):
            absent.append(name)
            continue
        fpr, tpr = (np.asarray(entry[key], dtype=float) for key in ("fpr", "tpr"))
        if fpr.ndim != 1 or fpr.shape != tpr.shape or len(fpr) < 2:
            raise ValueError(
                f"roc[{name!r}]: expected fpr and tpr as lists of one length, at least 2; got shapes {fpr.shape} and "
                f"{tpr.shape}"
            )
        if not all(np.all((values >= 0) & (values <= 1)) for values in (fpr, tpr, np.float64(entry["auc"]))):
            raise ValueError(f"roc[{name!r}]: expected fpr, tpr and auc within [0, 1]")
        # Colour and dashes go by the class, not by its rank, so that a class looks the same in every run's plot.
        looks = {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}
        curves.append((entry["auc"], name, fpr, tpr, looks))
    curves.sort(key=lambda curve: -curve[0])

    handles, labels = [], []
    with open_figure(path, height=max(5.4, 0.19 * len(roc) + 1.2), layout="constrained") as figure:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#AAAAAA", linewidth=1, zorder=1)
        for auc, name, fpr, tpr, looks in curves:
            handles += axes.plot(fpr, tpr, linewidth=1.6, **looks)
            labels.append(f"{auc:.3f}  {shorten(name)}")
        for name in absent:
            handles.append(Line2D([], [], linestyle="none"))
            labels.append(f"absent  {shorten(name)}")
        handles.append(Line2D([], [], color="#AAAAAA", linewidth=1))
        labels.append("0.500  chance")
        axes.set_aspect("equal")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false positive rate", ylabel="true positive rate")
        axes.set_title("ROC of each class against the rest")
        axes.set_anchor("NW")
        good = sum(auc > 0.9 for auc, *_ in curves)
        if good > 1 and not any(np.any((fpr > 0.5) & (tpr < 0.5)) for _, _, fpr, tpr, _ in curves):
            # Good curves crowd into one corner and leave room for a larger view of it below the diagonal.
            zoom = axes.inset_axes((0.55, 0.06, 0.42, 0.42), xlim=(0, 0.2), ylim=(0.8, 1))
            for _, _, fpr, tpr, looks in curves:
                zoom.plot(fpr, tpr, linewidth=1.6, **looks)
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
    path: str | os.PathLike,
) -> None:
    """Draw images beside their true and their predicted masks, one row an image.

    Args:
        images (`np.ndarray` of shape `(samples, 3, height, width)`, floats): RGB in [0, 1]; 1 to 8 samples.
        labels (`np.ndarray` of shape `(samples, height, width)`, integers): class ids, or `ignore_index` (striped).
        predictions (`np.ndarray` of shape `(samples, height, width)`, integers): class ids.
        class_names (`Sequence[str]`): one name a class, in the order of the ids.
        palette (`Sequence[tuple[int, int, int]]`): one RGB colour in 0..255 a class.
        ignore_index (`int`): the label that marks a pixel without truth; it does not count in the row's mIoU.
        path (`str` or `os.PathLike`): the PNG to write.

    Raises:
        ValueError: when shapes do not match, images are not in [0, 1], or an id is outside `class_names`.
    """
    images, labels, predictions = np.asarray(images), np.asarray(labels), np.asarray(predictions)
    colours = np.asarray(palette)
    _check_samples(images, labels, predictions, class_names, colours, ignore_index)
    labels, predictions = labels.astype(np.int64), predictions.astype(np.int64)  # uint8 overflows in _mean_iou
    ignored = labels == ignore_index
    samples, _, height, width = images.shape
    classes = len(class_names)

    areas = np.bincount(labels[~ignored], minlength=classes) + np.bincount(predictions.ravel(), minlength=classes)
    shown = np.sort(np.argsort(-areas, kind="stable")[: min(MAX_LEGEND_CLASSES, np.count_nonzero(areas))])
    handles = [Patch(facecolor=colours[index] / 255, edgecolor=FAINT, linewidth=0.5) for index in shown]
    names = [shorten(class_names[index]) for index in shown]
    if ignored.any():
        dark, light = (np.array(stripe) / 255 for stripe in IGNORED_STRIPES)
        handles.append(Patch(facecolor=dark, edgecolor=light, hatch="/////", linewidth=0))
        names.append("ignored")
    if np.count_nonzero(areas) > len(shown):
        handles.append(Line2D([], [], linestyle="none"))
        names.append(f"and {np.count_nonzero(areas) - len(shown)} more")
    columns = min(len(handles), 5)

    row_height = 0.32 * WIDTH * height / width + 0.26
    legend_height = 0.2 * -(-len(handles) // columns) + 0.2
    with open_figure(path, height=0.1 + samples * row_height + legend_height) as figure:
        grid = figure.subplots(samples, 3, squeeze=False)
        for index, row in enumerate(grid):
            image = np.moveaxis(images[index], 0, -1).astype(np.float32).clip(0, 1)
            truth, prediction = colours[np.where(ignored[index], 0, labels[index])], colours[predictions[index]]
            truth[ignored[index]] = _stripes(height, width)[ignored[index]]
            for axes, picture in zip(row, (image, truth, prediction), strict=True):
                axes.imshow(picture, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            score = _mean_iou(labels[index][~ignored[index]], predictions[index][~ignored[index]], classes)
            row[2].set_xlabel("nothing to score" if score is None else f"mIoU {score:.2f}", fontsize=8, loc="right")
        for axes, title in zip(grid[0], ("image", "truth", "prediction"), strict=True):
            axes.set_title(title)
        figure.legend(handles, names, loc="outside lower center", ncols=columns, handlelength=1.2, handleheight=1.2)


def _check_samples(images, labels, predictions, class_names, colours, ignore_index) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not 1 <= len(images) <= MAX_SAMPLES or not images.size:
        raise ValueError(f"images: expected shape (1 to {MAX_SAMPLES}, 3, height, width), got {images.shape}")
    if not np.issubdtype(images.dtype, np.floating) or not (images.min() >= -1e-3 and images.max() <= 1 + 1e-3):
        raise ValueError(
            f"images: expected floats in [0, 1], got {images.dtype} from {images.min()} to {images.max()}; divide "
            "bytes by 255, or undo the normalisation, first"
        )
    if colours.shape != (len(class_names), 3) or colours.min() < 0 or colours.max() > 255:
        raise ValueError(f"palette: expected {len(class_names)} RGB colours in 0..255, got shape {colours.shape}")
    expected = (len(images), *images.shape[2:])
    for name, masks in (("labels", labels), ("predictions", predictions)):
        if masks.shape != expected or not np.issubdtype(masks.dtype, np.integer):
            raise ValueError(f"{name}: expected integers of shape {expected}, got {masks.dtype} of {masks.shape}")
        known = (masks >= 0) & (masks < len(class_names))
        if name == "labels":
            known |= masks == ignore_index
        if not known.all():
            allowed = f" or {ignore_index}" if name == "labels" else ""
            raise ValueError(f"{name}: expected class ids 0..{len(class_names) - 1}{allowed}, got {masks[~known][0]}")


def _stripes(height: int, width: int) -> np.ndarray:
    """Diagonal grey stripes over a whole picture, about sixteen of each grey whatever its size."""
    thickness = max(1, height // 32)
    return np.array(IGNORED_STRIPES)[np.add.outer(np.arange(height), np.arange(width)) // thickness % 2]


def _mean_iou(truth: np.ndarray, prediction: np.ndarray, classes: int) -> float | None:
    """mIoU of one image over the classes that occur in it; None when every pixel is ignored."""
    matrix = np.bincount(truth * classes + prediction, minlength=classes**2).reshape(classes, classes)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return float((matrix.diagonal()[union > 0] / union[union > 0]).mean()) if union.any() else None
