"""What stands and moves in a generated street: poles, vehicles, people. Each is drawn at a depth `t` in (0, 1]."""

from __future__ import annotations

import numpy as np

from hf_seg.data.sources.synthetic.scene import (
    BICYCLE,
    BUS,
    CAR,
    CLOTHES,
    DYNAMIC,
    GLASS,
    HOUSES,
    LIGHT,
    METAL,
    MOTORCYCLE,
    PAINTS,
    PERSON,
    POLE,
    POLEGROUP,
    RIDER,
    SIGN,
    STATIC,
    TRAIN,
    TRUCK,
    TYRE,
    Colour,
    Street,
    darker,
)


def roadside(street: Street) -> float:
    return float(street.rng.choice((-1, 1)) * street.rng.uniform(1.08, 1.7))


def pole(street: Street, t: float) -> None:
    """A pole with nothing, a traffic light, a sign or two, or a lamp on it; seldom a group of poles."""
    x, y = street.at(roadside(street), t)
    size, kind, colour = street.metre * t, street.rng.integers(4), street.pick(METAL)
    height, half = (
        (street.rng.uniform(2.6, 3.4) if kind in (1, 2) else street.rng.uniform(4, 6.5)) * size,
        max(0.6, 0.08 * size),
    )
    street.box(x - half, y - height, x + half, y, colour, POLE)
    if kind == 0 and street.chance(0.3):
        street.box(x + 3 * half, y - height, x + 5 * half, y, colour, POLEGROUP)
    elif kind == 0:
        reach = -np.sign(x - street.vanishing) * 1.6 * size
        street.box(min(x, x + reach), y - height, max(x, x + reach), y - height + 2 * half, colour, POLE)
    elif kind == 1:
        w, h = max(1.2, 0.24 * size), max(3.0, 0.9 * size)
        street.box(x - w, y - height - h, x + w, y - height, (30, 32, 30), LIGHT)
        lit = int(street.rng.integers(3))
        glow = ((214, 48, 40), (232, 176, 52), (64, 200, 120))[lit]
        street.disc(x, y - height - h * (0.83 - 0.33 * lit), 0.6 * w, 0.14 * h, glow, LIGHT)
    elif kind == 2:
        r, top = max(1.6, 0.42 * size), y - height
        face, rim = [
            ((226, 222, 214), (190, 40, 44)),
            ((40, 84, 160), (226, 226, 226)),
            ((230, 190, 60), (226, 222, 214)),
        ][street.rng.integers(3)]
        if street.chance(0.5):
            street.disc(x, top, r, r, rim, SIGN)
            street.disc(x, top, 0.65 * r, 0.65 * r, face, SIGN)
        else:
            street.fill([(x - r, top + 0.8 * r), (x + r, top + 0.8 * r), (x, top - r)], rim, SIGN)
            street.fill([(x - r / 2, top + r / 2), (x + r / 2, top + r / 2), (x, top - r / 2)], face, SIGN)


def cuboid(street: Street, u: float, t: float, w: float, h: float, length: float, colour: Colour, label: int) -> None:
    """A vehicle's body, `w` by `h` metres: its front at depth `t`, and the side that faces the middle of the road."""
    x, y = street.at(u, t)
    size, back = street.metre * t, t * length
    bx, by = street.at(u, back)
    near, far = x - np.sign(u) * w / 2 * size, bx - np.sign(u) * w / 2 * street.metre * back
    top, far_top = y - h * size, by - h * street.metre * back
    street.fill([(near, y), (far, by), (far, far_top), (near, top)], darker(colour, 0.75), label)
    street.box(x - w / 2 * size, top, x + w / 2 * size, y - 0.25 * size, colour, label)
    for side in (-1, 1):
        wx = x + side * (w / 2 - 0.2) * size
        street.box(wx - 0.15 * size, y - 0.35 * size, wx + 0.15 * size, y, TYRE, label)


def lane(street: Street) -> float:
    return float(street.rng.choice((-0.86, -0.45, 0.42, 0.86)) + street.rng.normal(0, 0.04))


def lamps(street: Street, x: float, y: float, half: float, size: float, label: int) -> None:
    colour = ((196, 40, 36), (240, 236, 214))[street.rng.integers(2)]
    for side in (-1, 1):
        street.disc(x + side * half, y, 0.14 * size, 0.09 * size, colour, label)


def car(street: Street, t: float) -> None:
    u = lane(street)
    x, y = street.at(u, t)
    size, colour = street.metre * t, street.pick(PAINTS)
    roof = y - street.rng.uniform(1.4, 1.75) * size
    street.fill(
        [
            (x - 0.84 * size, y - 0.85 * size),
            (x + 0.84 * size, y - 0.85 * size),
            (x + 0.6 * size, roof),
            (x - 0.6 * size, roof),
        ],
        colour,
        CAR,
    )
    cuboid(street, u, t, 1.8, 0.9, 0.72, colour, CAR)
    street.fill(
        [
            (x - 0.72 * size, y - 0.88 * size),
            (x + 0.72 * size, y - 0.88 * size),
            (x + 0.52 * size, roof + 0.1 * size),
            (x - 0.52 * size, roof + 0.1 * size),
        ],
        GLASS,
        CAR,
    )
    lamps(street, x, y - 0.65 * size, 0.7 * size, size, CAR)
    street.box(x - 0.25 * size, y - 0.5 * size, x + 0.25 * size, y - 0.38 * size, (226, 226, 220), CAR)


def truck(street: Street, t: float) -> None:
    u, height = lane(street), street.rng.uniform(3.0, 3.8)
    x, y = street.at(u, t)
    size, colour = street.metre * t, street.pick(PAINTS)
    cuboid(street, u, t, 2.5, height, 0.5, colour, TRUCK)
    if street.chance(0.5):  # seen from behind: two doors
        street.box(
            x - 0.05 * size, y - (height - 0.2) * size, x + 0.05 * size, y - 0.6 * size, darker(colour, 0.6), TRUCK
        )
    else:
        cab = darker(street.pick(PAINTS), 0.9)
        street.box(x - 1.2 * size, y - 2.4 * size, x + 1.2 * size, y - 0.4 * size, cab, TRUCK)
        street.box(x - 1.0 * size, y - 2.2 * size, x + 1.0 * size, y - 1.4 * size, GLASS, TRUCK)
    lamps(street, x, y - 0.6 * size, size, size, TRUCK)


def coach(street: Street, u: float, t: float, height: float, length: float, colour: Colour, label: int) -> None:
    """A long vehicle with a large windscreen and a row of windows along its side."""
    x, y = street.at(u, t)
    size = street.metre * t
    cuboid(street, u, t, 2.6, height, length, colour, label)
    for start in np.linspace(length, 1, 6)[:-1]:
        corners = [
            (start, 0.42),
            (start + 0.13 * (1 - length), 0.42),
            (start + 0.13 * (1 - length), 0.8),
            (start, 0.8),
        ]
        outline = []
        for depth, up in corners:
            wx, wy = street.at(u, t * depth)
            scale = street.metre * t * depth
            outline.append((wx - np.sign(u) * 1.3 * scale, wy - up * height * scale))
        street.fill(outline, GLASS, label)
    street.box(x - 1.15 * size, y - 0.86 * height * size, x + 1.15 * size, y - 0.42 * height * size, GLASS, label)
    street.box(
        x - 0.7 * size, y - 0.97 * height * size, x + 0.7 * size, y - 0.89 * height * size, (232, 170, 60), label
    )
    lamps(street, x, y - 0.7 * size, 0.95 * size, size, label)


def bus(street: Street, t: float) -> None:
    coach(street, lane(street), t, street.rng.uniform(2.8, 3.3), 0.45, street.pick(PAINTS), BUS)


def tram(street: Street, t: float) -> None:
    u, colour = -0.3 + street.rng.normal(0, 0.03), street.pick(PAINTS)
    coach(street, u, t, street.rng.uniform(3.2, 3.6), 0.22, colour, TRAIN)
    x, y = street.at(u, t)
    size = street.metre * t
    street.box(x - 1.3 * size, y - 1.15 * size, x + 1.3 * size, y - 0.85 * size, darker(colour, 1.5), TRAIN)


def figure(street: Street, x: float, y: float, size: float, label: int, seated: bool) -> None:
    """A human being of 1.75 m, whose feet (or saddle, when seated) are at (x, y)."""
    shirt, trousers = street.pick(CLOTHES), street.pick(CLOTHES)
    skin = street.pick([(206, 160, 130), (150, 104, 78), (96, 66, 52)])
    hips = y if seated else y - 0.85 * size
    if seated:
        street.fill(
            [
                (x - 0.2 * size, hips),
                (x + 0.2 * size, hips),
                (x + 0.14 * size, y + 0.6 * size),
                (x - 0.14 * size, y + 0.6 * size),
            ],
            trousers,
            label,
        )
    else:
        step = street.rng.uniform(0.03, 0.26) * size
        for side in (-1, 1):
            street.fill(
                [
                    (x - 0.14 * size, hips),
                    (x + 0.14 * size, hips),
                    (x + side * step + 0.09 * size, y),
                    (x + side * step - 0.09 * size, y),
                ],
                trousers,
                label,
            )
    street.disc(x, hips - 0.28 * size, 0.26 * size, 0.38 * size, shirt, label)
    street.disc(x, hips - 0.76 * size, 0.13 * size, 0.16 * size, skin, label)


def person(street: Street, t: float) -> None:
    u = street.rng.uniform(-1, 1) if street.chance(0.15) else roadside(street)
    figure(street, *street.at(u, t), street.metre * t, PERSON, seated=False)


def cyclist(street: Street, t: float) -> None:
    """A bicycle seen from the side or askew, mostly with its rider."""
    x, y = street.at(float(street.rng.choice((-1.2, -0.75, 0.75, 1.2))), t)
    size, colour = street.metre * t, street.pick(PAINTS)
    gap = street.rng.uniform(0.25, 0.55) * size
    for side in (-1, 1):
        street.disc(x + side * gap, y - 0.34 * size, 0.3 * size, 0.34 * size, TYRE, BICYCLE)
        street.disc(x + side * gap, y - 0.34 * size, 0.2 * size, 0.24 * size, (120, 118, 116), BICYCLE)
    street.fill(
        [
            (x - gap, y - 0.4 * size),
            (x - 0.1 * size, y - 0.85 * size),
            (x + gap, y - 0.85 * size),
            (x, y - 0.3 * size),
        ],
        colour,
        BICYCLE,
    )
    if street.chance(0.8):
        figure(street, x, y - 0.85 * size, size, RIDER, seated=True)


def motorcyclist(street: Street, t: float) -> None:
    """A motorcycle from the front, with its rider or parked at the side."""
    ridden = street.chance(0.65)
    x, y = street.at(lane(street) if ridden else roadside(street), t)
    size, colour = street.metre * t, street.pick(PAINTS)
    street.disc(x, y - 0.32 * size, 0.14 * size, 0.32 * size, TYRE, MOTORCYCLE)
    street.disc(x, y - 0.7 * size, 0.34 * size, 0.36 * size, colour, MOTORCYCLE)
    street.box(x - 0.5 * size, y - 1.05 * size, x + 0.5 * size, y - 0.95 * size, TYRE, MOTORCYCLE)
    street.disc(x, y - 0.8 * size, 0.13 * size, 0.13 * size, (240, 236, 214), MOTORCYCLE)
    if ridden:
        figure(street, x, y - size, size, RIDER, seated=True)


def clutter(street: Street, t: float) -> None:
    """A bin, a cabinet or a pushcart beside the road: void in the benchmark."""
    x, y = street.at(roadside(street), t)
    size = street.metre * t
    w, h = street.rng.uniform(0.3, 0.7) * size, street.rng.uniform(0.7, 1.3) * size
    street.box(x - w / 2, y - h, x + w / 2, y, street.pick(PAINTS + HOUSES), DYNAMIC if street.chance(0.5) else STATIC)
