"""Draw one generated picture in the style of Cityscapes: a street seen from a car, and its labelIds."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from hf_seg.data.sources.cityscapes import CLASSES
from hf_seg.data.sources.synthetic.pet import COLOURS, SCALE, develop

WIDTH, HEIGHT = 192, 96  # the aspect ratio of Cityscapes
FOCAL = WIDTH * SCALE  # the camera's focal length in pixels
EYE, NEAR, FAR = 1.9, 5.0, 60.0  # metres: height of the camera, nearest visible distance, where houses end
LABEL_IDS = {name: label_id for label_id, name, _ in CLASSES} | {"own car": 1, "ground": 6}  # these two are void

Colours = tuple[tuple[int, int, int], ...]
GREYS: Colours = ((92, 90, 92), (118, 116, 116), (140, 134, 130), (106, 102, 98))
LEAVES: Colours = ((64, 88, 48), (84, 104, 58), (52, 70, 46), (112, 112, 60))
SKIES: Colours = ((150, 176, 206), (196, 204, 212), (176, 180, 186), (220, 214, 204))
PAINT: Colours = ((120, 24, 26), (36, 60, 116), (196, 198, 202), (226, 224, 214), (40, 40, 44), (84, 100, 90))
DARK, GLASS, PALE, SKIN = ((30, 30, 32),), ((52, 62, 74),), ((226, 222, 214),), ((190, 140, 110), (96, 66, 52))
# beside the street, in metres: least and greatest height, distance between openings, width of an opening
ROWS = {"building": (4, 12, 4, 2.2), "wall": (1.4, 2.6, 99, 1), "fence": (1, 1.8, 1.5, 0.7)}
# thing → greatest number, probability of each, least and greatest distance from the road's middle, length, colours
THINGS: dict[str, tuple[int, float, float, float, float, Colours]] = {
    "tree": (8, 0.6, 6, 9, 0, LEAVES),
    "lamp": (5, 0.5, 4.4, 6, 0, GREYS),
    "traffic light": (3, 0.5, 4.4, 6, 0, ((220, 50, 40), (60, 200, 120))),
    "traffic sign": (3, 0.5, 4.4, 6, 0, ((190, 40, 44), (40, 84, 160))),
    "person": (7, 0.5, 3.6, 7.5, 0, COLOURS),
    "car": (6, 0.65, 1.4, 3.4, 4, PAINT),
    "truck": (1, 0.35, 1.6, 3, 8, PAINT),
    "bus": (1, 0.35, 1.6, 3, 11, PAINT),
    "train": (1, 0.3, 1.3, 1.8, 25, PAINT),
    "motorcycle": (2, 0.5, 0.8, 4, 0, PAINT),
    "bicycle": (3, 0.5, 3, 6, 0, PAINT),
}
BOX, CABIN, DISC = 1.0, 0.75, 0.0  # relative width of a part's top; DISC is an ellipse
# Parts of things, back to front: thing, class, shape; left, bottom, right and top in metres from the foot (parts with
# left ≥ 0 are mirrored to the left, too); colours, or the brightness relative to the thing's own colour.
PARTS: list[tuple[str, str, float, float, float, float, float, Colours | float]] = [
    ("tree", "vegetation", BOX, -0.2, 0, 0.2, 2.5, ((70, 56, 44),)),
    ("tree", "vegetation", DISC, -1.3, 2.6, 1.2, 5.2, 0.9),
    ("tree", "vegetation", DISC, 0, 1.8, 1.9, 4, 1.1),
    ("lamp", "pole", BOX, -0.08, 0, 0.08, 5.6, 1.0),
    ("lamp", "pole", BOX, -1.5, 5.4, 0, 5.6, 1.0),
    ("traffic light", "pole", BOX, -0.08, 0, 0.08, 2.8, GREYS),
    ("traffic light", "traffic light", BOX, -0.28, 2.5, 0.28, 3.6, DARK),
    ("traffic light", "traffic light", DISC, -0.18, 3.1, 0.18, 3.5, 1.0),
    ("traffic sign", "pole", BOX, -0.08, 0, 0.08, 2.8, GREYS),
    ("traffic sign", "traffic sign", DISC, -0.48, 2.3, 0.48, 3.26, 1.0),
    ("person", "person", BOX, 0.02, 0, 0.18, 0.9, 0.6),
    ("person", "person", DISC, -0.28, 0.75, 0.28, 1.5, 1.0),
    ("person", "person", DISC, -0.14, 1.46, 0.14, 1.78, SKIN),
    ("car", "car", BOX, -0.9, 0.25, 0.9, 0.95, 1.0),
    ("car", "car", CABIN, -0.8, 0.9, 0.8, 1.6, 1.0),
    ("car", "car", CABIN, -0.68, 0.95, 0.68, 1.5, GLASS),
    ("car", "car", BOX, 0.5, 0, 0.85, 0.35, DARK),
    ("truck", "truck", BOX, -1.25, 0.2, 1.25, 3.5, 1.0),
    ("truck", "truck", BOX, -1, 1.3, 1, 2.1, GLASS),
    ("bus", "bus", BOX, -1.3, 0.3, 1.3, 3.1, 1.0),
    ("bus", "bus", BOX, -1.15, 1.2, 1.15, 2.7, GLASS),
    ("train", "train", BOX, -1.2, 0.15, 1.2, 3.6, 1.0),
    ("train", "train", CABIN, -1.1, 1.5, 1.1, 3.2, GLASS),
    ("motorcycle", "motorcycle", DISC, -0.2, 0, 0.2, 0.66, DARK),
    ("motorcycle", "motorcycle", DISC, -0.45, 0.4, 0.45, 1.05, 1.0),
    ("bicycle", "bicycle", DISC, 0.12, 0, 0.82, 0.7, DARK),
    ("bicycle", "bicycle", CABIN, -0.5, 0.4, 0.5, 0.9, 1.0),
]


def draw_street(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw a random street: an RGB image and a mask of labelIds (mode L), both 192×96."""
    street = _Street(rng)
    street.houses(-rng.uniform(8, 11))
    street.houses(rng.uniform(8, 11))
    placed = []
    for name, (most, probability, least, greatest, *_) in THINGS.items():
        for _ in range(rng.binomial(most, probability)):
            placed.append((NEAR + 50 * rng.beta(1.2, 2.5), name, rng.choice((-1, 1)) * rng.uniform(least, greatest)))
    for ahead, name, right in sorted(placed, reverse=True):  # far to near: nearer things hide farther ones
        street.thing(name, right, ahead)
        if name in ("bicycle", "motorcycle") and rng.uniform() < 0.75:
            street.thing("person", right, ahead, label="rider", lift=0.3)
    if rng.uniform() < 0.7:
        street.front("own car", street.pick(PAINT), -2.2, -0.6, 2.2, 0.75, NEAR, DISC)
    picture = np.asarray(street.image.reduce(SCALE), np.float32)
    return develop(rng, picture), street.mask.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)


class _Street:
    """A picture and its mask, drawn together. All lengths are metres: to the right (x), up (low, high) and ahead."""

    def __init__(self, rng: np.random.Generator):
        self.rng, size = rng, (WIDTH * SCALE, HEIGHT * SCALE)
        self.image, self.mask = Image.new("RGB", size), Image.new("L", size)
        self.layers = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        self.middle, self.horizon = size[0] * rng.uniform(0.42, 0.58), size[1] * rng.uniform(0.38, 0.5)
        self.front("sky", self.pick(SKIES), -999, 0, 999, 999, 999)
        around, colours = (("terrain", LEAVES), ("ground", GREYS))[rng.integers(2)]
        self.along(around, self.pick(colours), -999, 0, 999, 0, 1, 999)
        self.along("sidewalk", 1.15 * self.pick(GREYS), -rng.uniform(6, 9), 0, rng.uniform(6, 9), 0, 1, 999)
        self.along("road", 0.8 * self.pick(GREYS), -4.2, 0, 4.2, 0, 1, 999)
        for ahead in np.arange(rng.uniform(NEAR, 9), FAR, 6):
            self.along("road", self.pick(PALE), -0.08, 0, 0.08, 0, ahead, ahead + 3)

    def pick(self, colours: Colours) -> np.ndarray:
        return self.rng.normal(0, 8, 3) + colours[self.rng.integers(len(colours))]

    def fill(self, label: str, colour: np.ndarray, points: list[tuple[float, float, float]]) -> None:
        """Fill the outline through points, or the ellipse between two, in the picture and in the mask."""
        outline = [(self.middle + FOCAL * x / z, self.horizon + FOCAL * (EYE - y) / z) for x, y, z in points]
        values = tuple(min(max(int(part), 0), 255) for part in colour), LABEL_IDS[label]
        for layer, value in zip(self.layers, values, strict=True):
            (layer.ellipse if len(points) == 2 else layer.polygon)(outline, fill=value)

    def along(self, label, colour, x0: float, low: float, x1: float, high: float, near: float, far: float) -> None:
        self.fill(label, colour, [(x0, low, near), (x1, high, near), (x1, high, far), (x0, low, far)])

    def front(self, label, colour, x0: float, low: float, x1: float, high: float, ahead: float, top=BOX) -> None:
        inset = (1 - top) * (x1 - x0) / 2
        corners = [(x0, low), (x1, low), (x1 - inset, high), (x0 + inset, high)]
        self.fill(label, colour, [(x, y, ahead) for x, y in ([(x0, high), (x1, low)] if top == DISC else corners)])

    def houses(self, x: float) -> None:
        """Houses, walls and fences along one side of the street, from the far end to the camera."""
        far = FAR
        while far > NEAR / 2:
            near, label = far / self.rng.uniform(1.3, 1.9), str(self.rng.choice(list(ROWS), p=(0.62, 0.2, 0.18)))
            least, greatest, step, width = ROWS[label]
            colour, glass = self.pick(COLOURS if label != "fence" else GREYS), self.pick(GLASS)
            height = self.rng.uniform(least, greatest)
            self.along(label, colour, x, 0, x, height, near, far)
            self.front(label, 0.8 * colour, x, 0, x + np.sign(x) * 15, height, near)
            for start in np.arange(near + step / 3, far - width, step):
                for low in np.arange(0.3, height - 0.6, 3):
                    self.along(label, glass, x, low, x, low + min(height - 0.5, 1.5), start, start + width)
            far = near

    def thing(self, name: str, x: float, ahead: float, label: str = "", lift: float = 0.0) -> None:
        *_, length, colours = THINGS[name]
        own, parts = self.pick(colours), [part[1:] for part in PARTS if part[0] == name]
        if length:  # the side that faces the middle of the road
            _, _, left, low, right, high, _ = parts[0]
            inner = x - np.sign(x) * right
            self.along(name, 0.7 * own, inner, low, inner, high, ahead, ahead + length)
        for own_label, top, left, low, right, high, colour in parts:
            shade = own * colour if isinstance(colour, float) else self.pick(colour)
            for x0, x1 in [(left, right), (-right, -left)][: 1 + (left >= 0)]:
                self.front(label or own_label, shade, x + x0, low + lift, x + x1, high + lift, ahead, top)
