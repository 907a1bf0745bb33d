"""What a picture's header says of it: depth, bands and pages that Pillow would leave out are refused."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from hf_seg.data.columns import ClassMask, StoredImage, UprightImage
from hf_seg.data.stored_image import sample_values
from hf_seg.problem import PairError

SIZE = (8, 6)
GRADIENT = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
COLORS = np.stack([GRADIENT, GRADIENT[::-1], GRADIENT[:, ::-1]], axis=-1)
IDS = (GRADIENT > 100).astype(np.uint8)


def saved(pixels, kind, **options):
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels, photometric, *, extra=None, pages=((0,))):
    """An uncompressed TIFF of any depth and number of bands; `pages` are the kinds (NewSubfileType) of its pages."""
    height, width, bands = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    content = bytearray(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data)
    for number, kind in enumerate(pages):
        bits = len(content)
        tags = [(254, 4, 1, kind), (256, 3, 1, width), (257, 3, 1, height), None, (259, 3, 1, 1)]
        tags += [(262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, bands), (278, 3, 1, height)]
        tags += [(279, 4, 1, len(data))]
        tags += (
            [(338, 3, len(extra), int.from_bytes(struct.pack(f"<{len(extra)}H", *extra), "little"))] if extra else []
        )
        tags += [(339, 3, 1, 3 if pixels.dtype.kind == "f" else 1)]
        after = bits + 2 + 12 * len(tags) + 4
        deep = pixels.dtype.itemsize * 8
        tags[3] = (258, 3, bands, deep | deep << 16) if bands < 3 else (258, 3, bands, after)
        content += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        end = after + 2 * bands + 2 * bands % 4
        content += struct.pack("<I", end if number + 1 < len(pages) else 0) + struct.pack(
            f"<{bands}H", *[deep] * bands
        )
        content += bytes(end - len(content))
    return bytes(content)


def png(pixels, color_type):
    """A PNG of 16 bits a channel."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", *SIZE, 16, color_type, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    made = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def animated(kind, count=3):
    frames = [Image.fromarray(np.roll(COLORS, number, axis=0)) for number in range(count)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def with_text(length):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("comment", "x" * length, zip=True)
    return saved(COLORS, "PNG", pnginfo=info)


DEEP = (COLORS.astype(np.uint16) << 4) + 3  # 12 bits, as cameras for science give them
FOUR = np.concatenate([COLORS, COLORS[..., :1]], axis=-1)

REFUSED = {
    # name: (the file, code, what the message says of an image, and of a mask; None: a mask may be so)
    "16-bit grey PNG": (saved(DEEP[..., 0], "PNG"), "deep-image", "has more than 8 bits per channel (16)", None),
    "16-bit colour PNG": (png(DEEP, 2), "deep-image", "has more than 8 bits per channel (16)", ...),
    "16-bit grey PNG with alpha": (png(DEEP[..., :2], 4), "deep-image", "has more than 8 bits per channel (16)", ...),
    "16-bit colour TIFF": (tiff(DEEP, 2), "deep-image", "has more than 8 bits per channel (16)", ...),
    "32-bit TIFF": (saved(DEEP[..., 0].astype(np.int32), "TIFF"), "deep-image", "8 bits per channel (32)", None),
    "float TIFF": (saved(GRADIENT / np.float32(255), "TIFF"), "deep-image", "8 bits per channel (32)", "mode F"),
    "float colour TIFF": (tiff(COLORS / np.float32(255), 2), "deep-image", "8 bits per channel (32)", ...),
    "deep near infrared": (tiff(FOUR.astype(np.uint16), 2, extra=(0,)), "many-bands", "green, blue and 1 more", ...),
    "near infrared": (tiff(FOUR, 2, extra=(0,)), "many-bands", "has 4 bands: red, green, blue and 1 more", ...),
    "five bands": (tiff(np.repeat(COLORS[..., :1], 5, 2), 1), "many-bands", "one of grey or ids and 4 more", ...),
    "grey ×4": (tiff(FOUR, 1, extra=(0, 0)), "many-bands", "has 4 bands: one of grey or ids and 3 more", ...),
    "a stack": (animated("TIFF"), "many-pages", "has 3 pages or frames", ...),
    "a stack with a thumbnail": (tiff(COLORS, 2, pages=(0, 2, 1)), "many-pages", "has 2 pages or frames", ...),
    "animated GIF": (animated("GIF"), "many-pages", "has 3 pages or frames", ...),
    "animated WebP": (animated("WEBP"), "many-pages", "has 3 pages or frames", ...),
    "animated PNG": (animated("PNG"), "many-pages", "has 3 pages or frames", ...),
    "1 MB of text": (with_text(2**20 + 1), "undecodable", "Decompressed data too large", ...),
}  # fmt: skip
ACCEPTED = {
    "GIF of one frame": saved(COLORS, "GIF"),
    "a phone's preview": saved(COLORS, "MPO", save_all=True, append_images=[Image.fromarray(COLORS[::2, ::2])]),
    "a page and its thumbnail": tiff(COLORS, 2, pages=(0, 1, 4)),
    "RGBA TIFF": tiff(FOUR, 2, extra=(2,)),
    "RGBA TIFF that does not say so": tiff(FOUR, 2),
    "CMYK TIFF": tiff(FOUR, 5),
    "CMYK JPEG": saved(Image.fromarray(COLORS).convert("CMYK"), "JPEG"),
    "RGBA PNG": saved(FOUR, "PNG"),
    "some text": with_text(2**19),
}


def refused(column, content, path=None):
    with pytest.raises(PairError) as caught:
        column.decode_example({"path": path or "a.png", "bytes": content})
    assert caught.value.problem.place == (path or "a.png") and caught.value.problem.remedy
    return caught.value


@pytest.mark.parametrize("name", REFUSED)
def test_what_pillow_would_give_a_part_of_is_refused(name, tmp_path):
    content, code, of_image, of_mask = REFUSED[name]
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    # by training and prediction, of your own and of official data, from files and from tables
    errors = [refused(column, content) for column in (UprightImage(), StoredImage(mode="RGB"))]
    errors.append(refused(UprightImage(), None, str(path)))
    for error in errors:
        assert of_image in error.problem.what and error.problem.code == code
    mask = ClassMask(values=[0, 1], labels=[0, 1])
    reason = refused(mask, content).problem.what
    if of_mask is None:
        assert reason.startswith("the mask holds ")  # and not what is refused of an image
    else:
        assert (of_image if of_mask is ... else of_mask) in reason


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_looks_like_it_and_is_not(name):
    for column in (UprightImage(), StoredImage(mode="RGB")):
        image = column.decode_example({"path": None, "bytes": ACCEPTED[name]})
        assert image.mode == "RGB" and image.size == SIZE


COLUMNS = UprightImage(), UprightImage(value_range=[0, 10])
DEEP_KINDS = {
    "PNG": saved(DEEP[..., 0], "PNG"),
    "big-endian TIFF": saved(Image.frombytes("I;16B", SIZE, DEEP[..., 0].astype(">u2").tobytes()), "TIFF"),
    "32-bit TIFF": saved(DEEP[..., 0].astype(np.int32), "TIFF"),
    "float TIFF": saved(np.where(DEEP[..., 0] == 3, np.nan, DEEP[..., 0]).astype(np.float32), "TIFF"),
}


@pytest.mark.parametrize("kind", DEEP_KINDS)
def test_a_value_range_makes_8_bits_of_deep_pictures(kind):
    image = UprightImage(value_range=[503, 3001.5]).decode_example({"path": None, "bytes": DEEP_KINDS[kind]})
    shades = np.clip((DEEP[..., 0].astype(float) - 503) / (3001.5 - 503), 0, 1) * 255
    assert image.mode == "RGB" and np.array_equal(image, np.repeat(np.rint(shades)[..., None], 3, axis=-1))
    assert 0 < (shades == 0).mean() < 0.5 and 0 < (shades == 255).mean() < 0.5


@pytest.mark.parametrize("name", ["GIF of one frame", "RGBA TIFF", "CMYK JPEG"])
def test_a_value_range_is_for_deep_pictures_only(name):
    plain, ranged = (column.decode_example({"path": None, "bytes": ACCEPTED[name]}) for column in COLUMNS)
    assert np.array_equal(plain, ranged)


@pytest.mark.parametrize("name", [name for name, (*_, of_mask) in REFUSED.items() if of_mask is ...])
def test_a_value_range_makes_nothing_else_readable(name):
    content, code, reason, _ = REFUSED[name]
    error = refused(COLUMNS[1], content)
    assert reason in error.problem.what and error.problem.code == code
    assert "value_range, [low" not in error.problem.remedy


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.arange(48, dtype=np.uint16) * 50, "(16); most values are from 23 to 2327"),
        (np.arange(48, dtype=np.float32) / 47, "(32); most values are from 0.01 to 0.99"),
        (np.full(48, 7, np.uint16), "(16); most values are from 7 to 8"),
        (np.full(48, np.nan, np.float32), "(32); most values are from 0 to 1"),
    ],
)
def test_a_deep_picture_is_measured(values, said):
    error = refused(UprightImage(), saved(values.reshape(6, 8), "TIFF"))
    assert said in error.problem.what and "data.value_range, [low, high]" in error.problem.remedy


def test_ids_may_have_16_bits():
    column = ClassMask(values=[0, 1000], labels=[0, 1])
    mask = column.decode_example({"path": None, "bytes": saved(IDS.astype(np.uint16) * 1000, "PNG")})
    assert np.array_equal(mask, IDS)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
@pytest.mark.parametrize("by_color", [False, True])
def test_labels_in_the_alpha_channel(mode, by_color):
    mask = Image.new(mode, SIZE)
    column = ClassMask(by_color=by_color, values=[0, 1], labels=[0, 1])
    kind = "TIFF" if mode == "PA" else "PNG"
    empty = column.decode_example({"path": "a.png", "bytes": saved(mask, kind)})  # of one class, as a mask may be
    assert not np.asarray(empty).any()
    mask.putalpha(Image.fromarray(IDS * 255))
    error = refused(column, saved(mask, kind))
    assert (
        "all pixels of the mask have the same colour" in error.problem.what and "alpha channel" in error.problem.what
    )
    assert error.problem.code == "mask-kind"


def test_more_pixels_than_pillow_opens(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    error = refused(UprightImage(), saved(COLORS, "PNG"))
    assert "exceeds limit of 40 pixels" in error.problem.what and error.problem.code == "huge-image"


def test_a_large_picture_is_opened_without_a_warning(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "satellite.png")
    program = f"""
from hf_seg.data.stored_image import open_header
assert open_header({{"path": {str(tmp_path / "satellite.png")!r}, "bytes": None}}).width == 10_000
"""  # in a process of its own: pytest has its own filters of warnings
    assert subprocess.run([sys.executable, "-W", "error", "-c", program]).returncode == 0


def test_damage_is_said_of_the_file_also_where_no_pair_is(tmp_path):
    error = refused(UprightImage(), saved(COLORS, "JPEG")[:150])
    assert error.problem.what.startswith("cannot be decoded (") and error.problem.code == "undecodable"
    assert "FileNotFoundError" in refused(UprightImage(), None, str(tmp_path / "gone.png")).problem.what


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    error = refused(UprightImage(), None, str(tmp_path / "pipe.png"))
    assert "neither a file nor a link to one" in error.problem.what


def test_jpeg_data_under_another_name_is_no_mask():
    error = refused(ClassMask(values=[0, 1], labels=[0, 1]), saved(IDS, "JPEG"))
    assert error.problem.what == "the mask is JPEG data, which alters ids and colours"
    assert error.problem.code == "mask-kind" and "split at 128" in error.problem.remedy


def test_a_fourth_band_that_a_tiff_calls_alpha():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    error = refused(UprightImage(), saved(pixels, "TIFF"))
    assert "so may be a fourth band such as near infrared" in error.problem.what
    assert error.problem.code == "many-bands"
    pixels[..., 3] = np.where(pixels[..., 3] > 100, 255, 0)
    assert UprightImage().decode_example({"path": None, "bytes": saved(pixels, "TIFF")}).mode == "RGB"


@pytest.mark.parametrize(("dtype", "nodata"), [(np.float32, "-9999"), (np.uint16, "9999.0"), (np.uint16, "-1")])
def test_values_without_data_are_not_measured(tmp_path, dtype, nodata):
    values = np.full((10, 10), max(float(nodata), 0) if dtype is np.uint16 else float(nodata), dtype)
    values[2:] = np.arange(80).reshape(8, 10)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={42113: nodata})
    found = sample_values({"path": str(tmp_path / "a.tif"), "bytes": None})
    assert (found.min(), found.max()) == (0, 79)
