"""Folders of photographs and masks as nobody should have them, drawn at random from a number."""

import os
import random
from io import BytesIO
from pathlib import Path

import numpy as np
from own_folders import KINDS, scene
from PIL import Image, PngImagePlugin

NAMES = [
    *(
        "a",
        "b",
        "c",
        "photo 1",
        "grün",
        "gru\u0308n",
        "日本",
        "100%",
        "{x}",
        "-rf",
        "~",
        "$HOME",
        "a|b",
        "<script>alert(1)",
    ),
    *("\x1b[31mred", "two\nlines", "tab\t", "back\\slash", "CON", "x.jpg", "x_mask", "x_overlay", "classes", "recipe"),
    *("n" * 180, "..a", "a.", "A", "images", os.fsdecode(b"caf\xe9"), "`id`", "[x](y)", "\u202egnp"),
]
PARTS = [("images", "masks")] * 12 + [("images", "labels"), ("imgs", "masks"), ("Images", "Masks")]
SPLITS = [None] * 4 + [("train", "validation", "test"), ("train", "val"), ("training", "valid", "testing"), ("train",)]
OUTSIDE = "outside"  # a folder beside the drawn one, which links lead to


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def draw_photograph(draw: random.Random, hostility: float, pixels: np.ndarray) -> tuple[str, bytes]:
    """A suffix and what the file holds."""
    image = Image.fromarray(pixels)
    match draw.choice("ABCDEFGHIJKLMNOPQRS") if draw.random() < hostility else draw.choice(["jpeg", "jpeg", "png"]):
        case "jpeg":
            return ".jpg", encode(image, "JPEG")
        case "png":
            return ".png", encode(image, "PNG")
        case "A":
            return ".png", encode(image.convert("RGBA"), "PNG")
        case "B":
            return ".jpg", encode(image.convert("CMYK"), "JPEG")
        case "C":
            return ".tif", encode(Image.fromarray(pixels[..., 0].astype(np.uint16) * 200), "TIFF")
        case "D":
            return ".tiff", encode(Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF")
        case "E":
            return ".tif", encode(image, "TIFF", save_all=True, append_images=[image] * 3)
        case "F":
            return ".gif", encode(
                image.convert("P"), "GIF", save_all=True, append_images=[image.rotate(90).convert("P")]
            )
        case "G":
            return ".webp", encode(image, "WEBP")
        case "H":
            return ".bmp", encode(image.convert("1"), "BMP")
        case "I":
            text = PngImagePlugin.PngInfo()
            text.add_text("note", "x" * 2_000_000, zip=True)
            return ".png", encode(image, "PNG", pnginfo=text)
        case "J":
            whole = encode(image, "JPEG")
            return ".jpg", whole[: draw.randrange(len(whole))]
        case "K":
            whole = bytearray(encode(image, draw.choice(["PNG", "TIFF", "GIF", "WEBP"])))
            for _ in range(6):
                whole[draw.randrange(len(whole))] = draw.randrange(256)
            return ".png", bytes(whole)
        case "L":
            return ".jpg", b""
        case "M":
            return ".JPG", b"no picture\n"
        case "N":
            exif = Image.Exif()
            exif[0x0112] = draw.randrange(10)
            return ".jpeg", encode(image, "JPEG", exif=exif)
        case "O":
            return ".png", encode(Image.new("1", (4000, 3000)), "PNG")
        case "P":
            return ".png", encode(Image.new("RGB", (1, 1)), "PNG")
        case "Q":
            return ".jpg", encode(image.resize((1500, 2)), "JPEG")
        case "R":
            return ".png", encode(image.convert("LA"), "PNG")
        case "S":
            return ".txt", b"notes"
    raise AssertionError


def draw_mask(draw: random.Random, hostility: float, kind: str, ids: np.ndarray) -> tuple[str, bytes]:
    """The mask as its folder has them, or, now and then, something else."""
    image = KINDS[kind](ids)
    if draw.random() > hostility:
        return ".png", encode(image, "PNG")
    match draw.choice("ABCDEFGHIJ"):
        case "A":
            return ".jpg", encode(image.convert("RGB"), "JPEG")
        case "B":
            return ".png", encode(Image.fromarray(np.full_like(ids, 7)), "PNG")
        case "C":
            return ".png", encode(image.resize((11, 7)), "PNG")
        case "D":
            return ".tif", encode(Image.fromarray(ids.astype(np.float32)), "TIFF")
        case "E":
            palette = Image.fromarray(ids).convert("P")
            palette.putpalette([draw.randrange(256) for _ in range(768)])
            return ".png", encode(palette, "PNG")
        case "F":
            return ".png", encode(
                Image.merge("LA", [Image.new("L", ids.shape[::-1], 255), Image.fromarray(ids)]), "PNG"
            )
        case "G":
            whole = encode(image, "PNG")
            return ".png", whole[: draw.randrange(len(whole))]
        case "H":
            return ".png", b""
        case "I":
            return ".tif", encode(image, "TIFF", save_all=True, append_images=[image])
        case "J":
            return ".gif", encode(image.convert("P"), "GIF")
    raise AssertionError


def put(path: Path, content: bytes) -> None:
    """Write a file where the file system takes its name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except (OSError, ValueError):
        pass


def link(target: Path, place: Path) -> None:
    if not place.exists() and place.parent.is_dir():
        place.symlink_to(target)


def write_hostile_folder(root: Path, number: int) -> Path:
    """Draw and write `root/photos`, and `root/outside`, which some links in it lead to. Gives the former."""
    draw = random.Random(number)
    photos, outside = root / "photos", root / OUTSIDE
    photos.mkdir(parents=True)
    put(outside / "secret.txt", b"the user's own")
    put(outside / "images" / "away.jpg", encode(Image.fromarray(scene(99)[0]), "JPEG"))
    kind, parts, splits = draw.choice([*KINDS]), draw.choice(PARTS), draw.choice(SPLITS)
    hostility = draw.choice([0, 0.1, 0.5])
    below = draw.random() < 0.5  # images/train rather than train/images
    names = draw.sample(NAMES, draw.randint(3, 9))
    for index, name in enumerate(names):
        pixels, ids = scene(number + index, draw.choice([(48, 32), (48, 32), (33, 65), (5, 7)]))
        split = draw.choice(splits) if splits else None
        folders = (
            [Path(part) for part in parts]
            if not split
            else [Path(part, split) if below else Path(split, part) for part in parts]
        )
        deeper = draw.choice(["", "", "", "deep/er"])
        files = draw_photograph(draw, hostility, pixels), draw_mask(draw, hostility, kind, ids)
        for folder, (suffix, content) in zip(folders, files, strict=True):
            if draw.random() > 0.1 * hostility:
                put(photos / folder / deeper / f"{name}{suffix}", content)
    _add_oddities(draw, photos, outside)
    return photos


def _add_oddities(draw: random.Random, photos: Path, outside: Path) -> None:
    images, masks = photos / "images", photos / "masks"
    for oddity in draw.sample("abcdefghijklm", draw.choice([0, 0, 1, 2, 4])):
        match oddity:
            case "a":
                link(outside / "secret.txt", images / "secret.jpg")
            case "b":
                link(photos, images / "loop")
            case "c":
                link(outside / "images", images / "linked")
            case "d":
                link(photos / "nowhere.jpg", images / "dangling.jpg")
            case "e" if images.is_dir():
                os.mkfifo(images / "pipe.jpg")
            case "f":
                put(images / "folder.jpg" / "inner.txt", b"")
            case "g":
                put(photos / "classes.json", draw.choice([b"", b"[]", b'{"classes": 3}', CLASSES, HOSTILE_CLASSES]))
            case "h":
                put(
                    photos / "split.json",
                    draw.choice([b"{}", b"nonsense", b'{"train": ["a"], "validation": [], "test": []}']),
                )
            case "i":
                put(photos / "recipe.json", draw.choice([b"{}", b"the user's own", b"\xff\xfe"]))
            case "j":
                put(photos / "preview.png", b"the user's own")
            case "k":
                put(photos / draw.choice(["train.parquet", "data.zip", "x.tar.xz", "dataset_dict.json"]), b"damaged")
            case "l":
                put(photos / "runs" / "photos" / "mine.txt", b"the user's own")
            case "m" if masks.is_dir():
                put(masks / "labelmap.txt", b"# label:color_rgb:parts:actions\nthing:200,30,30::\n\x1b[2J:0,0,0::\n")


CLASSES = (
    b'{"classes": [{"name": "ground", "id": 0}, {"name": "disc", "id": 1}, {"name": "bar", "id": 2}], "ignore": [255]}'
)
HOSTILE_CLASSES = b'{"classes": [{"name": "<script>|\\u001b[31m", "id": 0}, {"name": "a\\nb", "id": 1}]}'
