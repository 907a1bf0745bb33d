"""Made-up folders of photographs and masks, as people have them: one scene, its masks written in many ways."""

import numpy as np
from PIL import Image

COLORS = {0: (0, 0, 0), 1: (200, 30, 30), 2: (30, 30, 200), 255: (255, 255, 255)}
ORIENTATION = 0x0112


def scene(number: int, size=(48, 32)) -> tuple[np.ndarray, np.ndarray]:
    """A red disc and a blue bar on green, with noise: the photograph (RGB) and the ids 0, 1 and 2."""
    random = np.random.default_rng(number)
    width, height = size
    y, x = np.mgrid[:height, :width]
    ids = np.zeros((height, width), np.uint8)
    ids[:, (x[0] > width * random.uniform(0.6, 0.7)) & (x[0] < width * 0.9)] = 2
    radius, column = height * random.uniform(0.2, 0.3), width * random.uniform(0.2, 0.4)
    ids[(x - column) ** 2 + (y - height / 2) ** 2 < radius**2] = 1
    image = np.array([(40, 150, 60), (210, 60, 50), (50, 70, 200)])[ids]
    return np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8), ids


def with_void(ids: np.ndarray) -> np.ndarray:
    """The same with a strip of 255 at the top."""
    ids = ids.copy()
    ids[:2] = 255
    return ids


def as_palette(ids: np.ndarray) -> Image.Image:
    mask = Image.fromarray(ids)
    palette = [0] * 768
    for value, color in COLORS.items():
        palette[3 * value : 3 * value + 3] = color
    mask.putpalette(palette)
    return mask


def as_rgb(ids: np.ndarray) -> Image.Image:
    return as_palette(ids).convert("RGB")


# how the ids 0, 1 and 2 (with void or not) may stand in a file
KINDS = {
    "ids": lambda ids: Image.fromarray(with_void(ids)),
    "palette": as_palette,
    "rgb": lambda ids: as_rgb(with_void(ids)),
    "rgba": lambda ids: as_rgb(ids).convert("RGBA"),
    "grey_rgb": lambda ids: Image.fromarray(ids).convert("RGB"),
    "grey_alpha": lambda ids: Image.fromarray(ids).convert("LA"),
    "sixteen_bits": lambda ids: Image.fromarray(ids.astype(np.uint16) * 1000),
    "binary": lambda ids: Image.fromarray((ids == 1).astype(np.uint8) * 255),
    "one_bit": lambda ids: Image.fromarray(ids == 1),
}


def write_image(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def write_folder(root, kind: str, count: int = 10, size=(48, 32), mask_suffix=".png"):
    """`root/images/photo_00.jpg` … and `root/masks/photo_00.png` …; gives `root`."""
    for number in range(count):
        image, ids = scene(number, size)
        write_image(root / "images" / f"photo_{number:02}.jpg", image, quality=95)
        write_image(root / "masks" / f"photo_{number:02}{mask_suffix}", KINDS[kind](ids))
    return root
