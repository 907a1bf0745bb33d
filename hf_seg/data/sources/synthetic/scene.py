"""The canvas of a generated street: picture and labelIds drawn as one, in perspective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
from PIL import ImageDraw

WIDTH, HEIGHT = 192, 96  # the aspect ratio of Cityscapes
SCALE = 2  # colours are drawn twice as large and reduced, for smooth edges

# labelIds of the official label list. The ids from EGO to RAIL_TRACK, BRIDGE and POLEGROUP are void: no class.
EGO, STATIC, DYNAMIC, GROUND, PARKING, RAIL_TRACK, BRIDGE, POLEGROUP = 1, 4, 5, 6, 9, 10, 15, 18
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN = 7, 8, 11, 12, 13, 17, 19, 20
VEGETATION, TERRAIN, SKY, PERSON, RIDER = 21, 22, 23, 24, 25
CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = 26, 27, 28, 31, 32, 33

Colour = tuple[int, int, int]
Point = tuple[float, float]

GREYS: tuple[Colour, ...] = ((92, 90, 92), (118, 116, 116), (140, 134, 130), (106, 102, 98))
HOUSES: tuple[Colour, ...] = (
    (150, 110, 90),
    (176, 160, 138),
    (128, 128, 132),
    (198, 188, 170),
    (110, 84, 76),
    (160, 148, 150),
)
PAINTS: tuple[Colour, ...] = (
    (30, 30, 36),
    (196, 198, 202),
    (120, 24, 26),
    (36, 60, 116),
    (110, 112, 118),
    (222, 222, 218),
)
CLOTHES: tuple[Colour, ...] = ((40, 42, 58), (120, 40, 44), (60, 84, 120), (170, 160, 144), (50, 76, 56), (28, 26, 28))
LEAVES: tuple[Colour, ...] = ((64, 88, 48), (84, 104, 58), (52, 70, 46), (112, 112, 60))
METAL: tuple[Colour, ...] = ((96, 98, 100), (132, 132, 130), (70, 74, 74))
GLASS: Colour = (52, 62, 74)
TYRE: Colour = (28, 27, 28)


@dataclass
class Street:
    """The picture being drawn, and the perspective: ground has a depth `t`, 0 at the horizon, 1 in front.

    Lateral positions are in half widths of the road, heights in metres; both shrink in proportion to `t`.
    """

    rng: np.random.Generator
    image: PIL.Image.Image = field(default_factory=lambda: PIL.Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE)))
    mask: PIL.Image.Image = field(default_factory=lambda: PIL.Image.new("L", (WIDTH, HEIGHT), STATIC))

    def __post_init__(self) -> None:
        self.paint, self.label = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        self.horizon = HEIGHT * self.rng.uniform(0.38, 0.5)
        self.vanishing = WIDTH * self.rng.uniform(0.4, 0.6)
        self.half_road = WIDTH * self.rng.uniform(0.4, 0.62)
        self.metre = HEIGHT * 0.24  # how high one metre appears at t = 1

    def at(self, u: float, t: float, up: float = 0.0) -> Point:
        """Where a point appears: `u` half road widths right of the middle, at depth `t`, `up` metres above ground."""
        ground = self.horizon + (HEIGHT - self.horizon) * t
        return self.vanishing + u * self.half_road * t, ground - up * self.metre * t

    def fill(self, points: Sequence[Point], colour: Colour, label: int) -> None:
        """Fill an outline in the picture and in the mask."""
        self.paint.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)
        self.label.polygon(points, fill=label)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, label: int) -> None:
        self.fill([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, label)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour, label: int) -> None:
        self.paint.ellipse([(x - rx) * SCALE, (y - ry) * SCALE, (x + rx) * SCALE, (y + ry) * SCALE], fill=colour)
        self.label.ellipse([x - rx, y - ry, x + rx, y + ry], fill=label)

    def pick(self, colours: Sequence[Colour], spread: float = 10.0) -> Colour:
        """One of the colours, slightly changed."""
        base = np.array(colours[self.rng.integers(len(colours))]) + self.rng.normal(0, spread, 3)
        return tuple(int(c) for c in np.clip(base, 0, 255))  # type: ignore[return-value]

    def chance(self, probability: float) -> bool:
        return self.rng.uniform() < probability


def darker(colour: Colour, factor: float) -> Colour:
    return tuple(min(255, int(c * factor)) for c in colour)  # type: ignore[return-value]
