"""What a picture shows is read back: text from the figure's artists, colour from the PNG's pixels."""

import gc
import os
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from hf_seg.runs import figure, plots

NAMES = ("cat", "ground", "edge")
PALETTE = ((10, 200, 30), (200, 10, 220), (0, 0, 0))
CITY = (
    "road sidewalk building wall fence pole light sign vegetation terrain sky person rider car truck bus train "
    "motorcycle bicycle"
).split()


def history(epochs=6, best=4):
    """What Trainer logs: training each epoch, validation each second one, then a test and a summary."""
    entries = []
    for epoch in range(1, epochs + 1):
        entries.append(
            {"loss": 1 / epoch, "grad_norm": 1.0, "learning_rate": 1e-3, "epoch": float(epoch), "step": epoch}
        )
        if epoch % 2 == 0 or epochs == 1:
            score = 0.6 - 0.05 * abs(epoch - best)
            entries.append(
                {"eval_loss": 0.5 + 0.3 / epoch, "eval_mean_iou": score, "epoch": float(epoch), "step": epoch}
            )
    entries.append({"test_loss": 40.0, "test_mean_iou": 0.99, "epoch": float(epochs), "step": epochs})
    entries.append({"train_runtime": 9.0, "train_loss": 50.0, "epoch": float(epochs), "step": epochs})
    return entries


def confusion(classes, absent=()):
    matrix = np.random.default_rng(0).integers(0, 50, (classes, classes)) + 400 * np.eye(classes, dtype=np.int64)
    matrix[list(absent)] = 0
    return matrix


def roc(names, power=0.1):
    rate = np.linspace(0, 1, 50)
    powers = [power * (1 + index / 10) for index in range(len(names))]
    return {
        name: {"fpr": rate.tolist(), "tpr": (rate**p).tolist(), "auc": 1 / (1 + p)}
        for name, p in zip(names, powers, strict=True)
    }


def samples(count=2, size=64, classes=3):
    rng = np.random.default_rng(1)
    images = rng.random((count, 3, size, size), dtype=np.float32)
    labels = np.kron(rng.integers(0, classes, (count, 8, 8)), np.ones((1, size // 8, size // 8), dtype=np.int64))
    return images, labels, np.roll(labels, 3, axis=2)


PLOTS = {
    "curves": lambda path: plots.plot_curves(history(), path),
    "confusion": lambda path: plots.plot_confusion(confusion(3), NAMES, path),
    "roc": lambda path: plots.plot_roc(roc(NAMES), path),
    "samples": lambda path: plots.plot_samples(*samples(), NAMES, PALETTE, 255, path),
}
every_plot = pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn during a test, in order: nothing else keeps them."""
    drawn = []

    def build(**options):
        drawn.append(Figure(**options))
        return drawn[-1]

    monkeypatch.setattr("hf_seg.runs.figure.Figure", build)
    return drawn


@pytest.mark.filterwarnings("error")
def test_characters_that_a_font_lacks(tmp_path, monkeypatch, capsys):
    names = ("猫", "地面", "Straße")
    figure._say_missing.cache_clear()
    monkeypatch.setattr(figure, "FONTS", ("DejaVu Sans", "not installed"))
    assert [*map(figure.shorten, names)] == ["\\u732b", "\\u5730\\u9762", "Straße"]
    plots.plot_confusion(confusion(3), names, tmp_path / "codes.png")
    assert capsys.readouterr().err.count("install one that has") == 1
    monkeypatch.setattr(figure, "FONTS", ("DejaVu Sans", "STIXGeneral"))
    names = ("の", "ground", "Straße")
    assert (*map(figure.shorten, names),) == names
    plots.plot_confusion(confusion(3), names, tmp_path / "drawn.png")
    assert not capsys.readouterr().err


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count_of(picture, colour):
    rgb = np.round(np.array(to_rgb(colour)) * 255) if isinstance(colour, str) else np.array(colour)
    return int((picture == rgb).all(axis=-1).sum())


def texts(parent):
    return [text.get_text() for text in parent.findobj(Text) if text.get_visible() and text.get_text()]


def assert_nothing_cut_off(figure):
    box = figure.get_tightbbox().padded(-0.01)  # inches, around everything that is drawn
    width, height = figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


# What holds for all four


@every_plot
def test_writes_one_png_1200_pixels_wide_with_something_on_white(draw, tmp_path):
    path = tmp_path / "new" / "folder" / "plot.png"
    draw(path)
    picture = pixels(path)
    assert picture.shape[1] == 1200 and 400 <= picture.shape[0] <= 1300
    assert (picture[0] == 255).all() and (picture[:, 0] == 255).all()  # a white margin: nothing is cut off
    assert len(Image.fromarray(picture).getcolors(maxcolors=picture.size)) > 20
    assert os.listdir(path.parent) == ["plot.png"]
    draw(path)  # a second run of the same recipe replaces it
    assert (pixels(path) == picture).all()


@every_plot
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(draw, tmp_path, monkeypatch):
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr("hf_seg.files.os.replace", full)
    with pytest.raises(OSError, match="disk full"):
        draw(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["plot.png"]


@every_plot
def test_personal_settings_neither_change_the_picture_nor_are_changed(draw, tmp_path):
    draw(tmp_path / "plain.png")
    personal = {"savefig.bbox": "tight", "axes.facecolor": "red", "font.size": 30, "text.usetex": True}
    with matplotlib.rc_context(personal):
        before = dict(matplotlib.rcParams)
        draw(tmp_path / "personal.png")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "personal.png").read_bytes()


@every_plot
def test_no_figure_outlives_the_call(draw, tmp_path):
    gc.collect()
    before = sum(isinstance(item, Figure) for item in gc.get_objects())
    draw(tmp_path / "plot.png")
    gc.collect()
    assert sum(isinstance(item, Figure) for item in gc.get_objects()) == before


def test_pyplot_stays_out_and_the_backend_stays_the_callers(tmp_path):
    # By path, in a fresh process: here, and in the package, others may import pyplot.
    program = (
        "import runpy, sys, matplotlib\n"
        f"plots = runpy.run_path({plots.__file__!r})\n"
        "plots['plot_roc']({'cat': {'fpr': [0, 1], 'tpr': [0, 1], 'auc': 0.5}}, sys.argv[1])\n"
        "print('matplotlib.pyplot' in sys.modules, matplotlib.get_backend(auto_select=False))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "roc.png")]
    result = subprocess.run(
        command, env={**os.environ, "MPLBACKEND": "svg"}, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "svg"]
    assert pixels(tmp_path / "roc.png").shape[1] == 1200


# Curves


def test_curves_show_training_and_validation_and_mark_the_best_epoch(tmp_path, figures):
    plots.plot_curves(history(epochs=6, best=4), tmp_path / "curves.png")
    left, right = figures[0].axes
    train, validation, best_left = left.lines
    assert train.get_xydata() == pytest.approx(np.array([[epoch, 1 / epoch] for epoch in range(1, 7)]))
    assert validation.get_xydata() == pytest.approx(np.array([[epoch, 0.5 + 0.3 / epoch] for epoch in (2, 4, 6)]))
    mean_iou, best_right, star = right.lines
    assert mean_iou.get_xydata() == pytest.approx(np.array([[2, 0.5], [4, 0.6], [6, 0.5]]))
    assert star.get_xydata() == pytest.approx(np.array([[4, 0.6]]))
    assert set(best_left.get_xdata()) == set(best_right.get_xdata()) == {4.0}
    assert "best: 0.600 (epoch 4)" in texts(right.get_legend())
    picture = pixels(tmp_path / "curves.png")
    assert count_of(picture[:, :600], plots.TRAIN) > 300 and count_of(picture[:, 600:], plots.TRAIN) == 0
    assert count_of(picture[:, :600], plots.VALIDATION) > 300 and count_of(picture[:, 600:], plots.VALIDATION) > 300
    assert_nothing_cut_off(figures[0])


def test_the_best_epoch_is_the_first_of_equals_and_never_nan(tmp_path, figures):
    scores = [float("nan"), 0.4, 0.7, None, 0.7]
    entries = [{"eval_mean_iou": score, "epoch": epoch} for epoch, score in enumerate(scores, 1)]
    plots.plot_curves(entries, tmp_path / "curves.png")
    assert figures[0].axes[1].lines[-1].get_xydata() == pytest.approx(np.array([[3, 0.7]]))


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
def test_a_single_epoch_is_a_visible_point(score, tmp_path, figures):
    entries = [{"loss": 0.9, "epoch": 1.0}, {"eval_loss": 0.8, "eval_mean_iou": score, "epoch": 1.0}]
    plots.plot_curves(entries, tmp_path / "curves.png")
    left, right = figures[0].axes
    assert left.get_ylim()[1] > 0.9 and right.get_ylim()[0] <= score < right.get_ylim()[1]
    assert left.get_xlim()[1] > 1
    picture = pixels(tmp_path / "curves.png")
    assert count_of(picture[:, 300:600], plots.TRAIN) > 10  # right of the legend
    assert count_of(picture[:, 1150:], plots.INK) > 50  # the star
    assert_nothing_cut_off(figures[0])


def test_curves_of_two_losses_are_told_apart(tmp_path, figures):
    for loss in ("cross-entropy", "cross-entropy + 0.5 × Dice loss (pixels weighted by class)"):
        plots.plot_curves(history(), tmp_path / "curves.png", loss)
        assert_nothing_cut_off(figures[-1])
    alike, different = (figure.axes[0] for figure in figures)
    assert alike.get_ylabel() == "cross-entropy" and texts(alike.get_legend())[:2] == ["train", "validation"]
    train, validation, _ = texts(different.get_legend())
    assert different.get_ylabel() == "" and " ".join(train.split()) == f"train: {loss}"
    assert validation == "validation: cross-entropy"


def test_a_run_too_short_for_a_validation_says_so(tmp_path, figures):
    plots.plot_curves(
        [{"loss": float("nan"), "epoch": 1.0}, {"train_loss": 1.0, "epoch": 1.0}], tmp_path / "curves.png"
    )
    assert "no validation in this run" in texts(figures[0].axes[1])


# Confusion matrix


def test_confusion_rows_are_shares_of_the_true_class(tmp_path, figures):
    plots.plot_confusion(np.array([[3, 1], [0, 7]]), [r"$\frac$", "_b_"], tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert np.allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    cells = {text.get_position(): text.get_text() for text in axes.texts if re.fullmatch(r"[\d.]+", text.get_text())}
    assert cells == {(0, 0): "75.0", (1, 0): "25.0", (0, 1): "0.0", (1, 1): "100.0"}
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"$\frac$", "_b_"]
    picture = pixels(tmp_path / "confusion.png")
    for share in (0.75, 0.25, 0.0, 1.0):
        colour = np.array(matplotlib.colormaps["Blues"](share, bytes=True)[:3])
        assert count_of(picture, colour) > 20_000


def test_absent_classes_are_hatched_and_have_no_number(tmp_path, figures):
    plots.plot_confusion(confusion(3, absent=[1]), NAMES, tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert [text.get_position()[1] for text in axes.texts if text.get_text() == "–"] == [1, 1, 1]
    (hatched,) = [patch for patch in axes.patches if patch.get_hatch()]
    assert hatched.get_bbox().bounds == (-0.5, 0.5, 3, 1)
    assert "hatched" in axes.texts[-1].get_text()
    plots.plot_confusion(np.zeros((3, 3), dtype=np.int64), NAMES, tmp_path / "confusion.png")
    assert [text.get_text() for text in figures[1].axes[0].texts[:-1]] == ["–"] * 9


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 9, 19, 20, 30, 150])
def test_every_size_of_matrix_stays_readable(classes, tmp_path, figures):
    names = [f"class with a rather long name {index}" for index in range(classes)]
    plots.plot_confusion(confusion(classes, absent=[0]), names, tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert_nothing_cut_off(figures[0])
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert len(set(shown)) == len(shown) >= min(classes, 30)  # the end of a name is kept
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in zip(boxes, boxes[1:], strict=False))
    numbers = [text for text in axes.texts if re.fullmatch(r"[\d.]+", text.get_text())]
    assert bool(numbers) == (1 < classes <= 20)
    cell = axes.get_window_extent().width / classes
    assert all(text.get_window_extent().width < cell for text in numbers)


# ROC


def test_roc_lists_classes_by_area_and_absent_ones_last(tmp_path, figures):
    curves = {
        "poor": {"fpr": [0, 0.5, 1], "tpr": [0, 0.5, 1], "auc": 0.5},
        "none": {"fpr": [], "tpr": [], "auc": None},
        "_good_": {"fpr": [0, 0, 1], "tpr": [0, 1, 1], "auc": 1.0},
        "nan": {"fpr": [0, 1], "tpr": [float("nan")] * 2, "auc": float("nan")},
    }
    plots.plot_roc(curves, tmp_path / "roc.png")
    axes = figures[0].axes[0]
    listed = [text.get_text().split() for text in axes.get_legend().get_texts()]
    assert listed == [
        ["1.000", "_good_"],
        ["0.500", "poor"],
        ["absent", "none"],
        ["absent", "nan"],
        ["0.500", "chance"],
    ]
    assert axes.get_aspect() == 1
    diagonal, good, poor = (line.get_xydata().tolist() for line in axes.lines)
    assert diagonal == [[0, 0], [1, 1]] and good == [[0, 0], [0, 1], [1, 1]] and poor == [[0, 0], [0.5, 0.5], [1, 1]]
    picture = pixels(tmp_path / "roc.png")
    assert count_of(picture, plots.COLOURS[0]) > 300 and count_of(picture, plots.COLOURS[2]) > 300
    assert count_of(picture, plots.COLOURS[1]) == count_of(picture, plots.COLOURS[3]) == 0


def test_roc_of_absent_classes_only(tmp_path, figures):
    plots.plot_roc({name: {"fpr": [], "tpr": [], "auc": None} for name in NAMES}, tmp_path / "roc.png")
    assert len(figures[0].axes[0].lines) == 1  # the diagonal
    assert pixels(tmp_path / "roc.png").shape[1] == 1200


@pytest.mark.parametrize("names", [NAMES, CITY, [f"a class with a long name {index}" for index in range(30)]], ids=len)
def test_every_class_has_its_own_line(names, tmp_path, figures):
    plots.plot_roc(roc(names), tmp_path / "roc.png")
    axes = figures[0].axes[0]
    # No public method gives a custom dash pattern back.
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes.lines[1:]}
    assert len(looks) == len(axes.lines) - 1 == len(names)
    assert_nothing_cut_off(figures[0])


def test_the_corner_is_enlarged_only_where_that_hides_no_curve(tmp_path, figures):
    good, below = roc(NAMES, power=0.02), {"worse": {"fpr": [0, 0.7, 1], "tpr": [0, 0.1, 1], "auc": 0.2}}
    for curves in (good, good | below, roc(NAMES, power=0.5)):
        plots.plot_roc(curves, tmp_path / "roc.png")
    assert [len(figure.axes[0].child_axes) for figure in figures] == [1, 0, 0]
    (zoom,) = figures[0].axes[0].child_axes
    assert (zoom.get_xlim(), zoom.get_ylim(), len(zoom.lines)) == ((0, 0.2), (0.8, 1), 3)


# Samples


def test_masks_have_the_palettes_colours_in_their_own_column(tmp_path, figures):
    images = np.full((1, 3, 64, 64), 128 / 255, dtype=np.float32)
    truth = np.zeros((1, 64, 64), dtype=np.int64)
    plots.plot_samples(images, truth, truth + 1, NAMES, PALETTE, 255, tmp_path / "samples.png")
    picture = pixels(tmp_path / "samples.png")[:420]  # above the legend
    columns = [picture[:, start : start + 400] for start in (0, 400, 800)]
    for expected, colour in enumerate(((128, 128, 128), *PALETTE[:2])):
        areas = [count_of(column, colour) for column in columns]
        assert areas[expected] > 350**2 > 100 > sum(areas) - areas[expected]  # but for the edges of letters
    assert texts(figures[0].legends[0]) == ["cat", "ground"]
    assert [axes.get_title(loc="left") for axes in figures[0].axes] == ["image", "truth", "prediction"]


def test_pixels_are_squares_and_not_blended(tmp_path, figures):
    images, labels, predictions = samples(count=1)
    plots.plot_samples(images, labels, predictions, NAMES, PALETTE, 255, tmp_path / "samples.png")
    assert all(axes.images[0].get_interpolation() == "nearest" for axes in figures[0].axes)
    box = figures[0].axes[1].get_window_extent()
    picture = pixels(tmp_path / "samples.png")
    mask = picture[-int(box.y1) + 2 : -int(box.y0) - 2, int(box.x0) + 2 : int(box.x1) - 2]
    assert {tuple(colour) for colour in np.unique(mask.reshape(-1, 3), axis=0)} == set(PALETTE)


def test_ignored_pixels_are_striped_in_the_truth_only(tmp_path, figures):
    images, labels, predictions = samples(count=1)
    labels[0, :16] = 255
    plots.plot_samples(images, labels, predictions, NAMES, PALETTE, 255, tmp_path / "samples.png")
    truth, prediction = (axes.images[0].get_array() for axes in figures[0].axes[1:3])
    stripes = [count_of(truth, grey) for grey in plots.IGNORED_STRIPES]
    assert sum(stripes) == 16 * 64 and min(stripes) == max(stripes)
    assert not any(count_of(prediction, grey) for grey in plots.IGNORED_STRIPES)
    picture = pixels(tmp_path / "samples.png")[:420]
    for grey in plots.IGNORED_STRIPES:
        assert count_of(picture[:, 400:800], grey) > 10_000 > count_of(picture[:, 800:], grey)
    assert texts(figures[0].legends[0])[-1] == "ignored"


def test_the_score_of_a_row_leaves_ignored_pixels_and_absent_classes_out(tmp_path, figures):
    labels = np.array([[[0, 0], [1, 255]], [[255, 255], [255, 255]]], dtype=np.uint8)
    predictions = np.array([[[0, 1], [1, 2]], [[0, 0], [0, 0]]], dtype=np.uint8)
    images = np.zeros((2, 3, 2, 2), dtype=np.float16)
    plots.plot_samples(images, labels, predictions, NAMES, PALETTE, 255, tmp_path / "samples.png")
    scores = [axes.get_xlabel() for axes in figures[0].axes]
    assert scores == ["", "", "mIoU 0.50", "", "", "nothing to score"]  # cat 1/2, ground 1/2, edge only where ignored


def test_small_integers_do_not_overflow(tmp_path, figures):
    images, labels, _ = samples(classes=19)
    palette = [(index, 2 * index, 3 * index) for index in range(19)]
    for kind in (np.uint8, np.int64):
        masks = labels.astype(kind)
        plots.plot_samples(images, masks, masks, CITY, palette, 255, tmp_path / "samples.png")
    assert [figure.axes[2].get_xlabel() for figure in figures] == ["mIoU 1.00"] * 2


@pytest.mark.parametrize("ignore_index", [-100, 255, 0])
def test_any_ignore_index(ignore_index, tmp_path, figures):
    images, labels, predictions = samples(count=1)
    labels[labels == 0] = ignore_index
    plots.plot_samples(images, labels, predictions, NAMES, PALETTE, ignore_index, tmp_path / "samples.png")
    truth = figures[0].axes[1].images[0].get_array()
    assert sum(count_of(truth, grey) for grey in plots.IGNORED_STRIPES) == (labels == ignore_index).sum() > 0


@pytest.mark.parametrize("count", [1, 4, 8])
@pytest.mark.parametrize("shape", [(64, 64), (64, 128)], ids=str)
def test_one_row_a_sample_of_its_own_shape(count, shape, tmp_path, figures):
    images, labels, predictions = samples(count, size=128, classes=19)
    cut = np.s_[..., : shape[0], : shape[1]]
    palette = np.random.default_rng(2).integers(0, 255, (19, 3))
    plots.plot_samples(images[cut], labels[cut], predictions[cut], CITY, palette, 255, tmp_path / "samples.png")
    assert len(figures[0].axes) == 3 * count
    assert_nothing_cut_off(figures[0])
    for axes in figures[0].axes:
        box = axes.get_window_extent()
        assert box.width > 330 and box.width / box.height == pytest.approx(shape[1] / shape[0], rel=0.01)
        assert not box.overlaps(figures[0].legends[0].get_window_extent())


def test_the_legend_holds_the_19_largest_classes(tmp_path, figures):
    masks = np.minimum(np.arange(64 * 64).reshape(1, 64, 64) // 64, 39)  # 40 classes; the last one is the largest
    names = [f"_{index}" for index in range(40)]
    palette = [(index, 0, 0) for index in range(40)]
    images = np.zeros((1, 3, 64, 64), dtype=np.float32)
    plots.plot_samples(images, masks, masks, names, palette, 255, tmp_path / "samples.png")
    assert texts(figures[0].legends[0]) == [*names[:18], "_39", "and 21 more"]
