"""The look of every picture: an empty figure in the common style, saved in one step."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_seg.text import printable

DPI = 150
WIDTH = 8.0  # inches; with DPI: 1200 pixels
INK, FAINT = "#222222", "#777777"
MAX_LEGEND_CLASSES = 19

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
    """Give an empty figure in the common style, and save it to `path` in one step when the block ends well."""
    path = Path(path)
    with style.context(["default", STYLE]):  # "default" first: a personal matplotlibrc must not change the result
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # inches
        FigureCanvasAgg(figure)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            figure.savefig(temporary, format="png", dpi=DPI)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def shorten(name: str, length: int = 24) -> str:
    """Cut the middle out of a long name: what tells two names apart is mostly at their ends."""
    name = printable(name)  # a font has no sign for what is not printable
    return name if len(name) <= length else f"{name[: length // 2]}…{name[1 - length // 2 :]}"
