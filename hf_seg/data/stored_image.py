"""Open and decode stored pictures; those that Pillow would read only in part are refused by their headers."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any, BinaryIO, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from hf_seg.problem import PairError

# An image or mask as a table stores it: {"path": str, "bytes": None} for a file, {"path": None, "bytes": bytes} if
# it was generated, or both for a row of a table that contains the pictures.
Stored = dict[str, Any]
Kind = Literal["image", "mask"]

# remedies
DAMAGED = "Get the undecodable files again, or remove them together with their image or mask."
TEXT = "Save the picture without its metadata: Pillow does not open a PNG with a text or colour profile above 1 MB."
HUGE = "Cut it into parts, or make a smaller copy: Pillow does not open pictures of this size."
DEEP = (
    "Give the values that become black and white as data.value_range, [low, high], as `hf-seg init` does; or save the "
    "picture with 8 bits per channel. The file itself does not say which of its values are dark and bright."
)
DEEP_COLORS = (
    "Save it with 8 bits per channel. (Pictures with one channel may have 16 bits; photographs then need "
    "data.value_range.)"
)
BANDS = "Save it with only the bands to use: red, green and blue, or one. Other bands would be left out."
PAGES = "Save each page or frame as a separate picture: only the first would be read."
LOSSY = (
    "Get the masks from before they were saved as JPEG, or repair them: converting the format keeps the altered "
    "values, so round each pixel to the nearest id or colour (two ids: split at 128), and save as PNG."
)
SOFT = 64  # values; a TIFF's alpha channel with more is taken for a fourth band: GDAL marks one as alpha
IN_ALPHA = "Save the labels as ids or colours of the pixels: transparency is not read."

# meaning of the tags of a TIFF
GDAL_NODATA = 42113  # the value of pixels without data, as text
COLORS = {2: 3, 5: 4, 6: 3, 8: 3}  # photometric interpretation → bands; 1 for all others
BAND_NAMES = {1: "one of grey or ids", 3: "red, green, blue", 4: "cyan, magenta, yellow, black"}
SAMPLED = 2**16  # at most this many values of a picture are used to measure its range
UNKNOWN, ALPHA = 0, 2  # values of the tag ExtraSamples
NO_PAGE = 1 | 4  # bits of the tag NewSubfileType: a smaller copy of another page, or its transparency

# Above half the size that it refuses, Pillow warns of an attack. Satellite pictures are as large, and the doctor names
# them.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)


def open_image(stored: Stored, *, upright: bool, value_range: Sequence[float] | None = None) -> PIL.Image.Image:
    """Decode a photograph to RGB with 8 bits per channel; a single channel becomes three equal ones.

    Args:
        stored (`dict`): `path`, its name in messages, and `bytes`, or None to read the file `path`.
        upright (`bool`): rotate it by its EXIF orientation.
        value_range (`Sequence[float]`, *optional*): for a picture with one channel of more than 8 bits, the value that
            becomes 0 and the one that becomes 255. Values between are mapped linearly and rounded, values outside are
            clipped, and NaN becomes 0. `inference.demo_app.decode` does the same without hf_seg.

    Raises:
        PairError: when it cannot be decoded, or when part of it (bits, bands, pages) would be lost silently.
    """
    with _decoded(stored, "image", deep=value_range is not None) as image:
        if image.format == "TIFF" and image.mode == "RGBA":
            if (shades := sum(count > 0 for count in image.getchannel("A").histogram())) > SOFT:
                reason = f"its alpha channel has {shades} values, and so may be a fourth band such as near infrared"
                raise PairError(name_of(stored), reason, BANDS, code="many-bands")
        if upright:
            PIL.ImageOps.exif_transpose(image, in_place=True)
        if is_deep(image):
            shades = np.nan_to_num(np.interp(np.asarray(image), value_range, (0, 255)))
            image = PIL.Image.fromarray(shades.round().astype(np.uint8))
        return image if image.mode == "RGB" else image.convert("RGB")


def is_deep(image: PIL.Image.Image) -> bool:
    """Whether a picture has one channel of more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def sample_values(stored: Stored) -> np.ndarray | None:
    """Return at most `SAMPLED` values of a deep photograph; None if it is not deep or cannot be decoded."""
    with suppress(Exception), open_header(stored) as image:
        if is_deep(image):
            values = np.asarray(image).ravel()
            if image.format == "TIFF" and (nodata := image.tag_v2.get(GDAL_NODATA)):
                values = values[values != float(nodata.strip(" \0"))]
            return values[:: 1 + values.size // SAMPLED]
    return None


def measure_range(values: np.ndarray) -> list[float]:
    """Return the 1st and the 99th percentile of the finite values, rounded; the first is below the second."""
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (1, 99)) if values.size else (0, 0)
    low, high = (float(f"{low:g}"), float(f"{high:g}")) if values.dtype.kind == "f" else (int(low), math.ceil(high))
    return [low, high if low < high else low + 1]


@contextmanager
def open_mask(stored: Stored) -> Iterator[PIL.Image.Image]:
    """Decode a mask as it is stored; its `format` is kept. Use it as `with open_mask(stored) as mask`.

    Raises:
        PairError: as `open_image`; also when only the alpha channel varies, and when the body of the `with` raises
            any other exception.
    """
    with _decoded(stored, "mask") as mask:
        if mask.format in ("JPEG", "MPO"):
            raise PairError(
                name_of(stored), "the mask is JPEG data, which alters ids and colours", LOSSY, code="mask-kind"
            )
        if mask.mode in ("LA", "PA", "RGBA"):
            *colors, (low, high) = mask.getextrema()
            if low < high and all(least == most for least, most in colors):
                reason = "all pixels of the mask have the same colour: its content is in the alpha channel"
                raise PairError(name_of(stored), reason, IN_ALPHA, code="mask-kind")
        yield mask


def open_header(stored: Stored) -> PIL.Image.Image:
    """Open a picture and read its header; nothing is decoded or checked."""
    if stored["bytes"] is not None:
        return PIL.Image.open(BytesIO(stored["bytes"]))
    if os.path.exists(stored["path"]) and not os.path.isfile(stored["path"]):
        raise OSError("neither a file nor a link to one")  # opening a pipe would wait for ever
    image = PIL.Image.open(stored["path"])
    image.filename = ""  # else Pillow memory-maps the file and garbles an uncompressed TIFF stored on its side
    return image


def orientation(image: PIL.Image.Image) -> int:
    """Return the EXIF orientation: 1 is upright as stored; from 5 on, rotating it swaps width and height."""
    if image.format == "PNG" and image.info.keys().isdisjoint(("exif", "Raw profile type exif")):
        return 1  # otherwise Pillow would decode it to look for EXIF data after the pixels
    return image.getexif().get(Base.Orientation, 1)


def name_of(stored: Stored) -> str:
    return stored["path"] or "a picture of the table"


@contextmanager
def _decoded(stored: Stored, kind: Kind, deep: bool = False) -> Iterator[PIL.Image.Image]:
    """Decode a picture or raise a PairError. `deep`: an image with one channel may have more than 8 bits."""
    name = name_of(stored)
    try:
        with open_header(stored) as image:
            _refuse(image, name, kind, deep)
            image.load()
            yield image
    except PairError:
        raise
    except Exception as error:  # damaged files make Pillow raise OSError, SyntaxError, ValueError, struct.error, …
        raise _explain(error, stored, kind) from error


def _refuse(header: PIL.Image.Image, name: str, kind: Kind, deep: bool) -> None:
    """Raise a PairError if Pillow would read only part of a picture. Only a refused deep image is decoded for this."""
    if header.format == "TIFF":
        bits = _refuse_bands(header.tag_v2, name, kind)
    else:  # Pillow reads 16-bit RGB as 8-bit RGB, without the lower bits
        bits = 16 if is_deep(header) or any(";16" in str(tile.args) for tile in header.tile) else 8
    if bits > 8 and not is_deep(header):
        raise _too_deep(bits, name, kind)
    if is_deep(header) and kind == "image" and not deep:
        low, high = measure_range(np.asarray(header))
        reason = f"the image has more than 8 bits per channel ({bits}); most values are from {low:g} to {high:g}"
        raise PairError(name, reason, DEEP, code="deep-image")
    if getattr(header, "is_animated", False) and header.format != "MPO":  # phones store a preview after the photo
        if header.format == "TIFF":  # may contain smaller copies of its pages
            kinds = [tags.get(Base.NewSubfileType, 0) for tags in _directories(header.fp)]
            pages = 1 + sum(not kind & NO_PAGE for kind in kinds[1:])
        else:
            pages = header.n_frames
        if pages > 1:
            raise PairError(name, f"the {kind} has {pages:,} pages or frames", PAGES, code="many-pages")


def _refuse_bands(tags: ImageFileDirectory_v2, name: str, kind: Kind) -> int:
    """Raise a PairError if a TIFF has too many bands, else return its bits per channel. This reads its tags, which
    say more than Pillow's mode and exist even where Pillow has no mode."""
    depths = tags.get(Base.BitsPerSample, (1,))
    bands = tags.get(Base.SamplesPerPixel, len(depths))
    colors = COLORS.get(tags.get(Base.PhotometricInterpretation), 1)
    extra = tags.get(Base.ExtraSamples, (ALPHA if colors == 3 else UNKNOWN,))
    if bands > colors + (extra[0] != UNKNOWN):
        reason = f"the {kind} has {bands} bands: {BAND_NAMES[colors]} and {bands - colors} more"
        raise PairError(name, reason, BANDS, code="many-bands")
    return max(depths)


def _too_deep(bits: int, name: str, kind: Kind) -> PairError:
    return PairError(name, f"the {kind} has more than 8 bits per channel ({bits})", DEEP_COLORS, code="deep-image")


def _directories(file: BinaryIO) -> Iterator[ImageFileDirectory_v2]:
    """Yield the tags of each page of a TIFF, always in the same object; pages need not be decodable."""
    file.seek(0)
    head = file.read(8)
    tags = ImageFileDirectory_v2(head + file.read(8) if head[2:3] == b"+" else head)  # "+": BigTIFF, above 4 GB
    seen = {0}
    while tags.next not in seen:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        yield tags


def _explain(error: Exception, stored: Stored, kind: Kind) -> PairError:
    """Build the PairError for a picture that Pillow cannot decode."""
    name, what = name_of(stored), f"cannot be decoded ({type(error).__name__}: {error})"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return PairError(name, what, HUGE, code="huge-image")
    if isinstance(error, PIL.UnidentifiedImageError):
        with suppress(Exception), BytesIO(stored["bytes"]) if stored["bytes"] else open(stored["path"], "rb") as file:
            try:
                if (bits := _refuse_bands(next(_directories(file)), name, kind)) > 8:
                    return _too_deep(bits, name, kind)
            except PairError as known:
                return known
    return PairError(name, what, TEXT if "MAX_TEXT" in str(error) else DAMAGED, code="undecodable")
