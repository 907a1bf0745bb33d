"""The common style of all figures: an empty figure that is saved in one step; lines, legends and masks."""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import font_manager, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hf_seg.files import write_whole
from hf_seg.text import printable, say

DPI = 150
WIDTH = 8.0  # inches; with DPI: 1200 pixels
INK, FAINT = "#222222", "#777777"
# Okabe and Ito's colours that are dark enough for a line on white. Colour-blind readers can tell them apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# A line takes a new dash pattern once the colours are used up: 35 lines can be told apart.
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2, 1, 1.5, 1, 1.5)))
# matplotlib's own font, and the usual ones with Chinese, Japanese and Korean on Linux, Windows and macOS
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Droid Sans Fallback")
FONTS += ("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS")
MAX_LEGEND_CLASSES = 19
# Ignored pixels are striped, because some palettes have a class in every plain grey and in black.
IGNORED_STRIPES = ((48, 48, 48), (120, 120, 120))

STYLE = {
    "figure.facecolor": "white",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may be named "$5 note"
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
}


@contextmanager
def open_figure(path: str | os.PathLike, height: float, layout: str = "compressed") -> Iterator[Figure]:
    """Yield an empty figure in the common style, and save it to `path` in one step unless the block raises.

    It does not use pyplot: no display is needed, the caller's backend and rcParams do not change, and the figure is
    freed as soon as it is saved. The PNG is 1200 pixels wide; `height` is in inches.
    """
    # "default" first: a personal matplotlibrc must not change the result
    with style.context(["default", STYLE, {"font.family": _families()}]):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # inches
        FigureCanvasAgg(figure)
        yield figure
        with write_whole(path) as partial:
            figure.savefig(partial, format="png", dpi=DPI)


def _families() -> tuple[str, ...]:
    """Names of the installed fonts that text is drawn in; a character comes from the first one that has it."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in FONTS if name in installed)


@functools.cache
def _is_drawn(character: str, families: Sequence[str]) -> bool:
    properties = (font_manager.FontProperties(family=[name]) for name in families)
    fonts = (font_manager.get_font(font_manager.findfont(each)) for each in properties)
    return any(font.get_char_index(ord(character)) for font in fonts) or _say_missing()


@functools.cache
def _say_missing() -> bool:
    what = "plots show some characters of names as codes, because no font has them"
    say(f"{what}; install one that has, such as Noto Sans CJK", sys.stderr)
    return False


def shorten(name: str, length: int = 24) -> str:
    """Cut the middle out of a long name: two names differ mostly at their beginning or end. Characters that no font
    has are replaced by codes."""
    families = _families()
    name = "".join(c if _is_drawn(c, families) else ascii(c)[1:-1] for c in printable(name))
    return name if len(name) <= length else f"{name[: length // 2]}…{name[1 - length // 2 :]}"


def line_look(index: int) -> dict[str, Any]:
    """Colour and dashes of a class or a compared arm by its number, so that it looks the same in all pictures."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def class_legend(
    areas: np.ndarray, class_names: Sequence[str], palette: np.ndarray, ignored: Patch | None
) -> dict[str, Any]:
    """Build the arguments of `legend` for the classes of some masks.

    Args:
        areas (`np.ndarray` of shape `(C,)`): pixels of each class; the 19 largest are listed.
        palette (`np.ndarray` of shape `(C, 3)`): RGB in 0..255.
        ignored (`Patch`, *optional*): how ignored pixels are drawn, if there are any.
    """
    shown = np.sort(np.argsort(-areas, kind="stable")[: min(MAX_LEGEND_CLASSES, np.count_nonzero(areas))])
    handles = [Patch(facecolor=palette[index] / 255, edgecolor=FAINT, linewidth=0.5) for index in shown]
    labels = [shorten(class_names[index]) for index in shown]
    if ignored is not None:
        handles.append(ignored)
        labels.append("ignored")
    if more := np.count_nonzero(areas) - len(shown):
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(f"and {more} more")
    # with handles: when matplotlib collects them itself, it leaves out labels that begin with `_`
    look = {"loc": "outside lower center", "handlelength": 1.2, "handleheight": 1.2}
    return {"handles": handles, "labels": labels, "ncols": min(len(handles), 5), **look}


def colour_masks(masks: np.ndarray, palette: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Draw masks `(n, height, width)` as RGB in 0..255, `(n, height, width, 3)`: the class colours of `palette`
    `(C, 3)`, and diagonal stripes where `ignored` (of the masks' shape) is True."""
    height, width = masks.shape[1:]
    thickness = max(1, height // 32)  # about sixteen stripes of each grey, whatever the size
    stripes = np.array(IGNORED_STRIPES)[np.add.outer(np.arange(height), np.arange(width)) // thickness % 2]
    return np.where(ignored[..., None], stripes, palette[np.where(ignored, 0, masks)])


def draw_columns(
    figure: Figure, titles: Sequence[str], columns: Sequence[np.ndarray], fontsize: float = 10
) -> np.ndarray:
    """Draw one column of pictures per array `(n, height, width, 3)`. Return the axes, of shape `(n, columns)`."""
    grid = figure.subplots(len(columns[0]), len(columns), squeeze=False)
    for axes_below, title, pictures in zip(grid.T, titles, columns, strict=True):
        axes_below[0].set_title(title, fontsize=fontsize)
        for axes, picture in zip(axes_below, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    return grid
