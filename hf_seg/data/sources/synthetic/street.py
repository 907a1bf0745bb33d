"""Drawing one generated picture in the shape of Cityscapes: a street seen from a car, and its labelIds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import PIL.Image

from hf_seg.data.sources.synthetic.scene import (
    BRIDGE,
    BUILDING,
    EGO,
    FENCE,
    GLASS,
    GREYS,
    GROUND,
    HEIGHT,
    HOUSES,
    LEAVES,
    METAL,
    PAINTS,
    PARKING,
    RAIL_TRACK,
    ROAD,
    SCALE,
    SIDEWALK,
    SKY,
    TERRAIN,
    VEGETATION,
    WALL,
    WIDTH,
    Colour,
    Street,
    darker,
)
from hf_seg.data.sources.synthetic.traffic import bus, car, clutter, cyclist, motorcyclist, person, pole, tram, truck


def draw_street(rng: np.random.Generator) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Draw one picture of a street.

    Args:
        rng (`np.random.Generator`): everything in the picture is drawn from it.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image]`: an RGB image and a mask of labelIds (mode L), both 192×96.
    """
    street = Street(rng)
    street.box(
        0, 0, WIDTH, HEIGHT, street.pick([(150, 176, 206), (196, 204, 212), (176, 180, 186), (220, 214, 204)]), SKY
    )
    lay_ground(street)
    for side in (-1, 1):
        line_with_houses(street, side)
    if street.chance(0.12):
        bridge(street)
    # Far things first: what is nearer hides them.
    for t, place in sorted(things(street), key=lambda thing: thing[0]):
        place(street, t)
    if street.chance(0.5):
        street.disc(WIDTH / 2, HEIGHT * 1.06, WIDTH * 0.42, HEIGHT * 0.16, street.pick(PAINTS), EGO)
    return develop(street), street.mask


def lay_ground(street: Street) -> None:
    """Terrain or plain ground to the sides, sidewalks, the road with its markings; sometimes rails or parking."""
    side = TERRAIN if street.chance(0.4) else GROUND
    colour = street.pick(LEAVES if side == TERRAIN else GREYS)
    street.box(0, street.horizon, WIDTH, HEIGHT, colour, side)

    def strip(u0: float, u1: float, colour: Colour, label: int, t0: float = 0.0, t1: float = 1.0) -> None:
        street.fill([street.at(u0, t0), street.at(u1, t0), street.at(u1, t1), street.at(u0, t1)], colour, label)

    asphalt = street.pick(GREYS)
    for side_of_road in (-1, 1):
        strip(side_of_road, side_of_road * street.rng.uniform(1.5, 2.6), street.pick(GREYS, 14), SIDEWALK)
        strip(side_of_road, side_of_road * 1.05, darker(asphalt, 1.3), SIDEWALK)  # kerb
    strip(-1, 1, asphalt, ROAD)
    if street.chance(0.3):
        strip(0.72, 1, darker(asphalt, 0.9), PARKING if street.chance(0.5) else ROAD, 0.1)
    if street.chance(0.25):
        for u in (-0.4, -0.22):
            strip(u, u + 0.04, darker(asphalt, 0.65), RAIL_TRACK)
    for start in np.arange(street.rng.uniform(0.05, 0.1), 1, 0.22):
        strip(-0.02, 0.02, (206, 204, 196), ROAD, start, min(1.0, start + 0.1))


def line_with_houses(street: Street, side: int) -> None:
    """Houses with windows, trees, a wall or a fence along one side of the road, from the far end on."""
    u, t, rng = side * street.rng.uniform(1.9, 2.6), 0.05, street.rng
    while t < 1.0:
        end = t * rng.uniform(1.35, 1.9)
        kind = rng.choice(4, p=(0.55, 0.25, 0.1, 0.1))
        if kind == 0:
            height, colour = rng.uniform(4, 11), street.pick(HOUSES, 14)
            facade(street, u, t, end, height, colour)
        elif kind == 1:
            for depth in np.linspace(t, end, 4):
                tree(street, u, float(depth))
        else:
            label, height = (WALL, rng.uniform(1.4, 2.4)) if kind == 2 else (FENCE, rng.uniform(0.9, 1.6))
            barrier(street, u, t, end, height, label)
        t = end


def facade(street: Street, u: float, t0: float, t1: float, height: float, colour: Colour) -> None:
    outer = u + np.sign(u) * 6  # the far side of the house, out of sight
    street.fill(
        [street.at(u, t0), street.at(outer, t0), street.at(outer, t0, height), street.at(u, t0, height)],
        darker(colour, 0.8),
        BUILDING,
    )
    street.fill(
        [street.at(u, t0), street.at(u, t1), street.at(u, t1, height), street.at(u, t0, height)], colour, BUILDING
    )
    glass = darker(GLASS, street.rng.uniform(0.7, 1.5))
    columns = np.geomspace(t0, t1, int(street.rng.integers(3, 6)) * 2)
    for left, right in zip(columns[1:-1:2], columns[2::2], strict=True):
        for floor in np.arange(0.8, height - 1.6, 2.6):
            corners = [(left, floor), (right, floor), (right, floor + 1.4), (left, floor + 1.4)]
            street.fill([street.at(u, t, up) for t, up in corners], glass, BUILDING)


def barrier(street: Street, u: float, t0: float, t1: float, height: float, label: int) -> None:
    colour = street.pick(HOUSES if label == WALL else METAL)
    corners = [(t0, 0.0), (t1, 0.0), (t1, height), (t0, height)]
    if label == WALL:
        street.fill([street.at(u, t, up) for t, up in corners], colour, label)
        return
    street.label.polygon([street.at(u, t, up) for t, up in corners], fill=label)  # what shows through counts as fence
    for t in np.linspace(t0, t1, 9):
        (x, y0), (_, y1) = street.at(u, t), street.at(u, t, height)
        street.paint.line([x * SCALE, y0 * SCALE, x * SCALE, y1 * SCALE], fill=colour, width=SCALE)
    for up in (0.15, height):
        (x0, y0), (x1, y1) = street.at(u, t0, up), street.at(u, t1, up)
        street.paint.line([x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE], fill=colour, width=SCALE)


def tree(street: Street, u: float, t: float) -> None:
    x, y = street.at(u, t)
    crown, size = street.rng.uniform(2.5, 5.0), street.metre * t
    street.box(x - 0.15 * size, y - crown * size, x + 0.15 * size, y, (70, 56, 44), VEGETATION)
    colour = street.pick(LEAVES)
    for _ in range(7):
        dx, dy = street.rng.normal(0, 0.8, 2) * size
        radius = street.rng.uniform(0.7, 1.5) * size
        shade = darker(colour, street.rng.uniform(0.75, 1.25))
        street.disc(x + dx, y - crown * size + dy, radius, radius, shade, VEGETATION)


def bridge(street: Street) -> None:
    t, colour = 0.12, street.pick(GREYS)
    (_, top), (_, bottom) = street.at(0, t, 7.5), street.at(0, t, 5)
    street.box(0, top, WIDTH, bottom, colour, BRIDGE)


def things(street: Street) -> list[tuple[float, Callable[[Street, float], None]]]:
    """What stands and moves in the street, each with its depth."""
    kinds: list[tuple[Callable[[Street, float], None], int, float]] = [
        (pole, 7, 0.6),
        (car, 6, 0.65),
        (truck, 1, 0.3),
        (bus, 1, 0.3),
        (tram, 1, 0.3),
        (person, 6, 0.5),
        (motorcyclist, 2, 0.4),
        (cyclist, 2, 0.5),
        (clutter, 2, 0.4),
    ]
    placed = []
    for place, most, probability in kinds:
        count = street.rng.binomial(most, probability)
        placed += [(float(0.1 + 0.75 * street.rng.beta(1.3, 1.7)), place) for _ in range(count)]
    return placed


def develop(street: Street) -> PIL.Image.Image:
    """Take the photograph: rough surfaces, how much light, its colour, shade from the sides, sensor noise."""
    rng = street.rng
    picture = np.asarray(street.image.reduce(SCALE), np.float32)
    values = np.asarray(street.mask)
    roughness = np.full(256, 0.05, np.float32)
    roughness[[VEGETATION, TERRAIN]] = 0.22
    roughness[[ROAD, SIDEWALK, BUILDING, GROUND]] = 0.08
    patches = rng.uniform(-1, 1, (HEIGHT // 2, WIDTH // 2)).astype(np.float32)
    rough = np.asarray(PIL.Image.fromarray(patches).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC))
    light = rng.uniform(0.65, 1.15) * (1 + rng.normal(0, 0.15) * np.linspace(-1, 1, WIDTH, dtype=np.float32))
    light = (light + roughness[values] * rough)[..., None] * rng.normal(1, 0.03, 3).astype(np.float32)
    picture = 118 + rng.uniform(0.75, 1.1) * (picture * light - 118)
    picture += rng.uniform(1, 6) * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
    return PIL.Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
