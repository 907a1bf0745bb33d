"""The one place where a stored picture is opened; its header says whether it can be used at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Any, BinaryIO, Literal

import PIL.Image
import PIL.ImageOps
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from hf_seg.problem import PairError

# An image or mask as a table stores it: {"path": str, "bytes": None} for a file, {"path": None, "bytes": bytes} if
# it was generated, or both for a row of a table in which pictures lie.
Stored = dict[str, Any]
Kind = Literal["image", "mask"]

# remedies
DAMAGED = "Get the undecodable files again, or remove them together with their image or mask."
TEXT = "Save the picture without its metadata: Pillow opens no PNG with a text or colour profile above 1 MB."
HUGE = "Make a smaller copy: Pillow opens no larger pictures."
DEEP = (
    "Save it with 8 bits a channel: a file does not say which of a deeper picture's values are its darkest and "
    "brightest. (Masks of one channel may have 16 bits.)"
)
BANDS = "Save it with the bands that are to be seen: red, green and blue, or one. The others would be left out."
PAGES = "Save each page or frame as a picture of its own: only the first would be read."
IN_ALPHA = "Save the labels as the pixels' ids or colours: transparency is not read."

# what the tags of a TIFF mean
COLORS = {2: 3, 5: 4, 6: 3, 8: 3}  # bands by photometric interpretation; of any other, one
BAND_NAMES = {1: "one of grey or ids", 3: "red, green, blue", 4: "cyan, magenta, yellow, black"}
UNKNOWN, ALPHA = 0, 2  # of an extra band
NO_PAGE = 1 | 4  # a smaller copy of another page, or its transparency


def open_image(stored: Stored, *, upright: bool) -> PIL.Image.Image:
    """Decode a photograph, as RGB.

    Args:
        stored (`dict`): `path`, by which messages name it, and `bytes`, or None where they stand in the file `path`.
        upright (`bool`): turn it as its EXIF note says.

    Raises:
        PairError: when it cannot be decoded, or is of a kind of which a part would be lost in silence.
    """
    with _decoded(stored, "image") as image:
        if upright:
            PIL.ImageOps.exif_transpose(image, in_place=True)
        return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def open_mask(stored: Stored) -> Iterator[PIL.Image.Image]:
    """Decode a mask as it is stored, its format still known: `with open_mask(stored) as mask`.

    Raises:
        PairError: as `open_image`; also when the only thing in it is its transparency, and when what is made of the
            mask below the `with` raises something else.
    """
    with _decoded(stored, "mask") as mask:
        if mask.mode in ("LA", "PA", "RGBA"):
            *colors, (low, high) = mask.getextrema()
            if low < high and all(least == most for least, most in colors):
                reason = "all pixels of the mask have one colour: what it shows is in its alpha channel"
                raise PairError(name_of(stored), reason, IN_ALPHA, code="mask-kind")
        yield mask


def open_header(stored: Stored) -> PIL.Image.Image:
    """Read what a file says of its picture; nothing is decoded, or judged."""
    if stored["bytes"] is not None:
        return PIL.Image.open(BytesIO(stored["bytes"]))
    if os.path.exists(stored["path"]) and not os.path.isfile(stored["path"]):
        raise OSError("neither a file nor a link to one")  # opening a pipe would wait for ever
    return PIL.Image.open(stored["path"])


def orientation(image: PIL.Image.Image) -> int:
    """A photograph's EXIF note: 1 is upright as stored; from 5 on, turning it exchanges width and height."""
    if image.format == "PNG" and image.info.keys().isdisjoint(("exif", "Raw profile type exif")):
        return 1  # it would be decoded to look for a note behind the pixels
    return image.getexif().get(Base.Orientation, 1)


def name_of(stored: Stored) -> str:
    return stored["path"] or "a picture of the table"


@contextmanager
def _decoded(stored: Stored, kind: Kind) -> Iterator[PIL.Image.Image]:
    name = name_of(stored)
    try:
        with open_header(stored) as image:
            _refuse(image, name, kind)
            image.load()
            yield image
    except PairError:
        raise
    except Exception as error:  # damaged files make Pillow raise OSError, SyntaxError, ValueError, struct.error, …
        raise _explain(error, stored, kind) from error


def _refuse(header: PIL.Image.Image, name: str, kind: Kind) -> None:
    """Raise for a picture of which Pillow would give a part only; nothing is decoded for it."""
    if header.format == "TIFF":
        _refuse_tags(header.tag_v2, name, kind)
    elif header.mode.startswith(("I", "F")):
        _refuse_depth(16, 1, name, kind)
    elif any(";16" in str(tile.args) for tile in header.tile):  # what Pillow calls RGB has lost its lower 8 bits
        _refuse_depth(16, 3, name, kind)
    if getattr(header, "is_animated", False) and header.format != "MPO":  # phones put a preview behind a photograph
        if header.format == "TIFF":  # which may hold smaller copies of its pages
            kinds = [tags.get(Base.NewSubfileType, 0) for tags in _directories(header.fp)]
            pages = 1 + sum(not kind & NO_PAGE for kind in kinds[1:])
        else:
            pages = header.n_frames
        if pages > 1:
            raise PairError(name, f"the {kind} has {pages:,} pages or frames", PAGES, code="many-pages")


def _refuse_tags(tags: ImageFileDirectory_v2, name: str, kind: Kind) -> None:
    """The same by the tags of a TIFF, which say more than Pillow's mode, and also where Pillow knows no mode."""
    depths = tags.get(Base.BitsPerSample, (1,))
    bands = tags.get(Base.SamplesPerPixel, len(depths))
    _refuse_depth(max(depths), bands, name, kind)
    colors = COLORS.get(tags.get(Base.PhotometricInterpretation), 1)
    extra = tags.get(Base.ExtraSamples, (ALPHA if colors == 3 else UNKNOWN,))
    if bands > colors + (extra[0] != UNKNOWN):
        reason = f"the {kind} has {bands} bands: {BAND_NAMES[colors]} and {bands - colors} more"
        raise PairError(name, reason, BANDS, code="many-bands")


def _refuse_depth(bits: int, bands: int, name: str, kind: Kind) -> None:
    if bits > 8 and (kind == "image" or bands > 1):  # a mask of one band may hold ids above 255
        raise PairError(name, f"the {kind} has more than 8 bits a channel ({bits})", DEEP, code="deep-image")


def _directories(file: BinaryIO) -> Iterator[ImageFileDirectory_v2]:
    """The tags of each page of a TIFF, in an object that the next page's replace; pages need not be decodable."""
    file.seek(0)
    head = file.read(8)
    tags = ImageFileDirectory_v2(head + file.read(8) if head[2:3] == b"+" else head)  # "+": a file above 4 GB
    seen = {0}
    while tags.next not in seen:
        seen.add(tags.next)
        file.seek(tags.next)
        tags.load(file)
        yield tags


def _explain(error: Exception, stored: Stored, kind: Kind) -> PairError:
    """What is to be said of a picture that Pillow refuses."""
    name, what = name_of(stored), f"cannot be decoded ({type(error).__name__}: {error})"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return PairError(name, what, HUGE, code="huge-image")
    if isinstance(error, PIL.UnidentifiedImageError):
        with suppress(Exception), BytesIO(stored["bytes"]) if stored["bytes"] else open(stored["path"], "rb") as file:
            try:
                _refuse_tags(next(_directories(file)), name, kind)
            except PairError as known:
                return known
    return PairError(name, what, TEXT if "MAX_TEXT" in str(error) else DAMAGED, code="undecodable")
