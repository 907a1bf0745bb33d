"""The picture by which a person checks a data set: masks over photographs, with a legend."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hf_seg.data.classes import Classes
from hf_seg.data.columns import ClassMask, UprightImage
from hf_seg.data.pairs import StoredPair
from hf_seg.data.spec import IGNORE_INDEX
from hf_seg.runs.figure import FAINT, MAX_LEGEND_CLASSES, WIDTH, open_figure, shorten

COLUMNS = 4
SIDE = 400  # pixels of the longer side of a picture


def plot_preview(
    pairs: Sequence[StoredPair], mask_column: ClassMask, classes: Classes, path: str | os.PathLike
) -> None:
    """Draw the masks over their photographs, half transparent; what is ignored is black.

    Args:
        pairs (`Sequence[StoredPair]`): 1 to 8 of them, whose masks hold known classes.
        mask_column ([`ClassMask`]): decodes the masks.
        classes ([`Classes`]): names and colours.
        path (`str` or `os.PathLike`): the PNG to write.
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(classes.palette)] = classes.palette
    pictures, areas = [], np.zeros(256, dtype=np.int64)
    for pair in pairs:
        image, mask = UprightImage().decode_example(pair.image), mask_column.decode_example(pair.mask)
        areas += mask.histogram()
        image.thumbnail((SIDE, SIDE))
        labels = np.asarray(mask.resize(image.size, PIL.Image.Resampling.NEAREST))
        blended = PIL.Image.blend(image, PIL.Image.fromarray(colours[labels]), 0.5)
        pictures.append(PIL.ImageOps.pad(blended, (SIDE, SIDE), color="white"))

    count = len(classes.names)
    shown = np.sort(np.argsort(-areas[:count], kind="stable")[: min(MAX_LEGEND_CLASSES, (areas[:count] > 0).sum())])
    handles = [Patch(facecolor=colours[index] / 255, edgecolor=FAINT, linewidth=0.5) for index in shown]
    names = [shorten(classes.names[index]) for index in shown]
    if areas[IGNORE_INDEX]:
        handles.append(Patch(facecolor="black"))
        names.append("ignored")
    if more := np.count_nonzero(areas[:count]) - len(shown):
        handles.append(Line2D([], [], linestyle="none"))
        names.append(f"and {more} more")

    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    legend_columns = min(len(handles), 5)
    height = rows * (WIDTH / columns + 0.2) + 0.2 * -(-len(handles) // legend_columns) + 0.3
    with open_figure(path, height=height) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, picture, pair in zip(grid, pictures, pairs, strict=False):
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(
                shorten(os.path.basename(pair.image_name).removesuffix(", image")), fontsize=7, fontweight="normal"
            )
        legend = {"ncols": legend_columns, "handlelength": 1.2, "handleheight": 1.2}
        figure.legend(handles, names, loc="outside lower center", **legend)
