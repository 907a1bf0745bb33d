"""Draw one generated picture in the style of Oxford-IIIT Pet: an animal on textured ground, and its trimap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFilter

SIZE = 96
SCALE = 2  # outlines are drawn twice as large and reduced, for smooth edges
LINE = np.linspace(-1, 1, SIZE, dtype=np.float32)
PET, BACKGROUND, BOUNDARY = 1, 2, 3  # raw values of the official trimaps

# Ground and things take their colours from the whole list, animals from its first FURS: no colour reveals a class.
FURS = 8
_RGB = bytes.fromhex(
    "3a302c 605c5c 928e8a ded6c8 c68448 e2b680 7a5234 a89474 6c7c54 "
    "708096 b0685c cec496 547260 92a67c 566688 96a6b6 9a7892 465c40"
)
COLOURS = np.frombuffer(_RGB, np.uint8).reshape(-1, 3).astype(np.float32)
DARK = (34, 28, 28)
EYES = ((70, 52, 36), (96, 120, 60), (150, 120, 40), (60, 96, 130))

Points = NDArray[np.float32]  # (n, 2): x, y; an animal lies within about [-1, 1], y points down


class Part(NamedTuple):
    """A piece of an animal: its outline, and its brightness relative to the coat or its RGB colour."""

    points: Points
    shade: float | tuple[int, int, int]


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0, n: int = 28) -> Points:
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    px, py, cos, sin = rx * np.cos(turn), ry * np.sin(turn), np.cos(angle), np.sin(angle)
    return np.stack([x + px * cos - py * sin, y + px * sin + py * cos], axis=1).astype(np.float32)


def tube(
    start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float], w0: float, w1: float
) -> Points:
    """A curved tube (leg, neck, tail) from `start` to `end`, pulled towards `bend`, of half-widths `w0` to `w1`."""
    t = np.linspace(0, 1, 10)[:, None]
    a, b, c = (np.array(p) for p in (start, bend, end))
    line = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    along = np.gradient(line, axis=0)
    across = along[:, ::-1] * (-1, 1) / np.linalg.norm(along, axis=1, keepdims=True)
    width = w0 + (w1 - w0) * t
    cap = line[-1] + along[-1] / np.linalg.norm(along[-1]) * w1
    return np.concatenate([line + across * width, cap[None], (line - across * width)[::-1]]).astype(np.float32)


def head(rng: np.random.Generator, x: float, y: float, r: float, *, cat: bool, turned: float) -> list[Part]:
    """A head seen from the front; `turned` in [-1, 1] moves the face sideways."""
    u = rng.uniform
    parts = []
    if cat:
        for side in (-1, 1):
            tip = (0.78 * side + 0.1 * turned, -1.3 + u(-0.1, 0.1))
            ear = np.array([(0.9 * side, -0.25), tip, (0.15 * side, -0.8)])
            parts += [Part(r * ear + (x, y), 0.92), Part(r * (0.6 * ear + (0.25 * side, -0.26)) + (x, y), 1.15)]
        skull, muzzle = (1.0, 0.86), (0.44, 0.3, 0.42)
    else:
        skull, muzzle = (0.88, 0.95), (0.48, 0.42, 0.5)
    parts.append(Part(ellipse(x, y, skull[0] * r, skull[1] * r), 1.0))
    if not cat:
        floppy, spread = u(0, 1) < 0.7, u(0.8, 0.98)
        for side in (-1, 1):
            if floppy:
                shape = ellipse(x + side * spread * r, y + 0.1 * r, 0.27 * r, u(0.55, 0.75) * r, -side * u(0.1, 0.45))
            else:
                shape = r * np.array([(0.85 * side, -0.3), (0.62 * side, -1.35), (0.12 * side, -0.82)]) + (x, y)
            parts.append(Part(shape, 0.74))
    fx = x + 0.22 * turned * r
    parts.append(Part(ellipse(fx, y + muzzle[2] * r, muzzle[0] * r, muzzle[1] * r), u(1.08, 1.3)))
    iris = EYES[rng.integers(len(EYES))]
    for side in (-1, 1):
        ex, ey = fx + side * 0.38 * r, y - 0.1 * r
        parts += [Part(ellipse(ex, ey, 0.16 * r, 0.15 * r), iris), Part(ellipse(ex, ey, 0.075 * r, 0.12 * r), DARK)]
    nose, colour = (0.1, (92, 60, 58)) if cat else (0.17, DARK)
    return [*parts, Part(ellipse(fx, y + (muzzle[2] - 0.12) * r, nose * r, 0.72 * nose * r), colour)]


def animal(rng: np.random.Generator) -> list[Part]:
    """The parts of a cat or a dog, back to front: sitting, standing, lying, or only head and shoulders."""
    u = rng.uniform
    cat = bool(rng.integers(2))
    tail = (0.09, 0.05) if cat else (0.1, 0.03)
    pose = rng.choice(4, p=(0.35, 0.25, 0.22, 0.18))
    if pose == 0:  # sitting
        side, lean = rng.choice((-1, 1)), u(-0.12, 0.12)
        bend, end = (side * u(0.8, 1.1), 0.95), (side * u(0.6, 1.0), u(0.0, 0.7))
        parts = [Part(tube((0.3 * side, 0.75), bend, end, *tail), 0.85)]
        parts.append(Part(ellipse(0, 0.25, u(0.4, 0.5), 0.66), 0.95))
        parts += [Part(ellipse(s * 0.34, 0.66, 0.22, 0.27, s * 0.3), 0.9) for s in (-1, 1)]
        parts.append(Part(ellipse(lean, 0.12, 0.24, 0.42), u(1.0, 1.3)))
        for s in (-1, 1):
            parts.append(Part(tube((s * 0.15, 0.2), (s * 0.17, 0.5), (s * 0.18, 0.86), 0.11, 0.1), 1.02))
            parts.append(Part(ellipse(s * 0.2, 0.92, 0.14, 0.08), 1.12))
        return parts + head(rng, lean * 2, -0.45, u(0.36, 0.46), cat=cat, turned=u(-0.8, 0.8))
    if pose == 1:  # standing, seen from the side
        up = u(-0.65, 0.1)
        parts = [Part(tube((0.6, -0.1), (0.95, -0.1), (u(0.85, 1.15), up), *tail), 0.85)]
        for x, shade in ((-0.42, 0.78), (0.5, 0.78), (-0.55, 1.0), (0.4, 1.0)):  # the farther pair is darker
            foot = x + u(-0.14, 0.14)
            parts.append(Part(tube((x, 0.1), (x + u(-0.06, 0.06), 0.5), (foot, 0.8), 0.15, 0.08), shade))
            parts.append(Part(ellipse(foot - 0.05, 0.84, 0.13, 0.07), shade))
        parts.append(Part(ellipse(0, 0, 0.72, u(0.28, 0.36), u(-0.05, 0.05)), 1.0))
        parts.append(Part(tube((-0.45, 0), (-0.6, -0.2), (-0.72, -0.35), 0.25, 0.2), 1.0))
        return parts + head(rng, -0.8, u(-0.5, -0.35), u(0.29, 0.36), cat=cat, turned=u(-1, -0.2))
    if pose == 2:  # lying
        parts = [Part(tube((0.75, 0.45), (1.15, 0.6), (u(0.7, 1.1), u(0.65, 0.8)), *tail), 0.85)]
        parts += [Part(ellipse(0.1, 0.35, 0.8, u(0.3, 0.38)), 0.96), Part(ellipse(0.5, 0.45, 0.32, 0.28, -0.3), 1.04)]
        for shift in (0.0, 0.14):
            parts.append(Part(tube((-0.4, 0.5), (-0.7, 0.62), (-0.95 + shift, 0.62 + shift / 3), 0.12, 0.09), 1.05))
        return parts + head(rng, -0.55, u(-0.05, 0.15), u(0.34, 0.42), cat=cat, turned=u(-0.7, 0.7))
    parts = [Part(ellipse(u(-0.1, 0.1), 1.15, u(0.7, 0.9), 0.75), 0.92), Part(ellipse(0, 1.1, 0.35, 0.6), u(1.0, 1.3))]
    return parts + head(rng, 0, 0, u(0.66, 0.8), cat=cat, turned=u(-0.6, 0.6))


def noise(rng: np.random.Generator, across: int, down: int) -> NDArray[np.float32]:
    """Draw smooth noise in about [-1, 1], of shape (SIZE, SIZE), with `across` × `down` cells."""
    cells = PIL.Image.fromarray(rng.uniform(-1, 1, (down, across)).astype(np.float32))
    return np.asarray(cells.resize((SIZE, SIZE), PIL.Image.Resampling.BICUBIC))


def coat(rng: np.random.Generator, colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw the fur of an animal or the surface of a thing: RGB of shape (SIZE, SIZE, 3), about [0, 255]."""
    base, other = colours[rng.choice(len(colours), 2, replace=False)]
    pattern = rng.choice(4, p=(0.4, 0.2, 0.2, 0.2))
    grain = 1 + 0.16 * noise(rng, 40, 24)
    if pattern == 0:  # one colour
        return base * grain[..., None]
    if pattern == 1:  # stripes, bent by noise
        angle, count = rng.uniform(0, np.pi), rng.uniform(7, 13)
        across = LINE[None, :] * np.cos(angle) + LINE[:, None] * np.sin(angle)
        share = 0.35 * np.clip(3 * np.sin(np.pi * count * across + 4 * noise(rng, 5, 5)), 0, 1)
    else:  # patches, large or small
        cells = int(rng.integers(3, 6)) if pattern == 2 else int(rng.integers(9, 14))
        share = np.clip(8 * (noise(rng, cells, cells) - rng.uniform(0.0, 0.3)), 0, 1)
    return (base + share[..., None] * (other - base)) * grain[..., None]


def shrink(layer: PIL.Image.Image, blur: float = 0) -> NDArray[np.float32]:
    """Return a layer reduced to the size of the picture, with values in [0, 1]."""
    layer = layer.reduce(SCALE)
    return np.asarray(layer.filter(ImageFilter.GaussianBlur(blur)) if blur else layer, np.float32) / 255


def draw_pet(rng: np.random.Generator) -> tuple[PIL.Image.Image, PIL.Image.Image]:
    """Draw a random animal: an RGB image and a trimap (mode L: 1 animal, 2 background, 3 the band
    between them), both 96×96."""
    picture = ground(rng)
    for _ in range(rng.integers(4)):
        add_thing(rng, picture)
    silhouette, shades, features = animal_layers(rng)

    # Ragged fur: the outline is blurred, then thresholded at a level that changes from place to place.
    alpha = np.clip(3 * (shrink(silhouette, 0.8) - 0.5 + 0.2 * noise(rng, 48, 48)) + 0.5, 0, 1)
    alpha *= shrink(silhouette) > 0
    # The fur is darker towards the outline, eyes and nose are on top, and the animal casts a shadow.
    blurred = shrink(silhouette, SIZE / 16)
    fur = coat(rng, COLOURS[:FURS]) * (2.55 * shrink(shades) * (0.55 + 0.5 * blurred))[..., None]
    detail = shrink(features)
    fur += detail[..., 3:] * (255 * detail[..., :3] - fur)
    shadow = np.roll(blurred, (rng.integers(2, 9), rng.integers(-10, 11)), axis=(0, 1))
    picture *= (1 - rng.uniform(0.2, 0.5) * shadow)[..., None]
    picture += alpha[..., None] * (fur - picture)
    return develop(rng, picture), trimap(alpha)


def animal_layers(rng: np.random.Generator) -> tuple[PIL.Image.Image, PIL.Image.Image, PIL.Image.Image]:
    """Draw an animal somewhere in the picture: silhouette (L), shade of its coat (L, per cent) and face (RGBA)."""
    size = SIZE * SCALE
    angle, stretch = rng.normal(0, 0.12), rng.choice((-1, 1)) * rng.uniform(0.85, 1.15)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))]) * (stretch, 1.0)
    matrix = turn.T * rng.uniform(0.33, 0.52) * size
    shift = np.array((size * rng.normal(0.5, 0.09), size * rng.uniform(0.42, 0.6)))

    layers = [PIL.Image.new(mode, (size, size), fill) for mode, fill in (("L", 0), ("L", 100), ("RGBA", (0, 0, 0, 0)))]
    silhouette, shades, features = (ImageDraw.Draw(layer) for layer in layers)
    for part in animal(rng):
        shape = [tuple(point) for point in (part.points @ matrix + shift).tolist()]
        silhouette.polygon(shape, fill=255)
        if isinstance(part.shade, tuple):
            features.polygon(shape, fill=(*part.shade, 255))
        else:
            shades.polygon(shape, fill=int(100 * part.shade))
            features.polygon(shape, fill=(0, 0, 0, 0))  # a part in front hides the eyes behind it
    return layers[0], layers[1], layers[2]


def ground(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw a wall and a floor, or a single ground, each with its own texture."""
    picture = coat(rng, COLOURS) * rng.uniform(0.6, 0.95)
    if rng.uniform() < 0.6:
        horizon = SIZE * rng.uniform(0.3, 0.75) + LINE * SIZE * rng.normal(0, 0.06)
        below = np.clip(np.arange(SIZE, dtype=np.float32)[:, None] - horizon + 0.5, 0, 1)[..., None]
        picture += below * (coat(rng, COLOURS) * rng.uniform(0.6, 0.95) - picture)
    return picture


def add_thing(rng: np.random.Generator, picture: NDArray[np.float32]) -> None:
    """Paint a thing (cushion, box, plank, ball) into the picture, in colours that animals have, too."""
    size = SIZE * SCALE
    x, y = rng.uniform(0, size, 2)
    rx, ry = rng.uniform(0.06, 0.26, 2) * size
    shape = ellipse(x, y, rx, ry, rng.uniform(0, np.pi), n=int(rng.choice((4, 5, 28, 28))))
    layer = PIL.Image.new("L", (size, size), 0)
    ImageDraw.Draw(layer).polygon([tuple(point) for point in shape.tolist()], fill=255)
    light = 0.6 + 0.45 * shrink(layer, SIZE / 20)
    picture += shrink(layer)[..., None] * (coat(rng, COLOURS) * light[..., None] - picture)


def trimap(alpha: NDArray[np.float32]) -> PIL.Image.Image:
    """Build the trimap: boundary is a band from 2 pixels inside the outline to 1 outside, as annotators leave one."""
    inside = PIL.Image.fromarray((alpha > 0.5).astype(np.uint8) * 255)
    core = np.asarray(inside.filter(ImageFilter.BoxBlur(2))) == 255
    reach = np.asarray(inside.filter(ImageFilter.BoxBlur(1))) > 0
    return PIL.Image.fromarray(np.where(core, PET, np.where(reach, BOUNDARY, BACKGROUND)).astype(np.uint8))


def develop(rng: np.random.Generator, picture: NDArray[np.float32]) -> PIL.Image.Image:
    """Simulate a camera: strength and colour of the light, a brighter side, contrast, sensor noise."""
    across, down = rng.normal(0, 0.16, 2)
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in picture.shape[:2])
    light = rng.uniform(0.7, 1.2) * (1 + across * columns + down * rows[:, None])
    tint = rng.normal(1, 0.05, 3).astype(np.float32)
    picture = 128 + rng.uniform(0.8, 1.15) * (picture * (light[..., None] * tint) - 128)
    picture += rng.uniform(1, 7) * rng.standard_normal((*picture.shape[:2], 1), np.float32)
    return PIL.Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
