"""The preview of a data set, for checking by eye: masks over photographs, with a legend."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets import Image
from matplotlib.patches import Patch

from hf_seg.data.classes import Classes
from hf_seg.data.pairs import StoredPair
from hf_seg.data.spec import IGNORE_INDEX
from hf_seg.runs.figure import WIDTH, class_legend, open_figure, shorten

COLUMNS = 4
SIDE = 400  # pixels of the longer side of a picture


def plot_preview(pairs: Sequence[StoredPair], image_column: Image, classes: Classes, path: str | os.PathLike) -> None:
    """Draw the masks of 1 to 8 pairs, half transparent over their photographs, to a PNG. Ignored pixels are black.

    Args:
        image_column: decodes the photographs.
    """
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(classes.palette)] = classes.palette
    pictures, areas, column = [], np.zeros(256, dtype=np.int64), classes.build_column()
    for pair in pairs:
        image, mask = image_column.decode_example(pair.image), column.decode_example(pair.mask)
        areas += mask.histogram()
        image.thumbnail((SIDE, SIDE))
        labels = np.asarray(mask.resize(image.size, PIL.Image.Resampling.NEAREST))
        blended = PIL.Image.blend(image, PIL.Image.fromarray(colours[labels]), 0.5)
        pictures.append(PIL.ImageOps.pad(blended, (SIDE, SIDE), color="white"))

    ignored = Patch(facecolor="black") if areas[IGNORE_INDEX] else None
    legend = class_legend(areas[: len(classes.names)], classes.names, colours, ignored)
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    height = rows * (WIDTH / columns + 0.2) + 0.2 * -(-len(legend["handles"]) // legend["ncols"]) + 0.3
    with open_figure(path, height=height) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, picture, pair in zip(grid, pictures, pairs, strict=False):
            axes.imshow(picture, interpolation="nearest")
            title = shorten(os.path.basename(pair.image_name).removesuffix(", image"))
            axes.set_title(title, fontsize=7, fontweight="normal")
        figure.legend(**legend)
