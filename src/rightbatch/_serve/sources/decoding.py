"""What requests and files have in common: which picture formats are opened, and their conversion.

Only these decoders run, whatever a file is called: Pillow would hand an EPS file to Ghostscript.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rightbatch._serve.sources.signatures import SIGNATURE_BYTES, refusal
from rightbatch._serve.sources.structure import Structure

if TYPE_CHECKING:
    from rightbatch._serve.models.protocol import Image

MAX_PIXELS = 50_000_000
"""Of a picture and of a frame: telephones have 50 million, an 8K film has 33."""

PHOTOS = ("JPEG", "PNG", "WEBP", "BMP")
"""Pillow's formats of requests."""

FILES = (*PHOTOS, "TIFF", "GIF", "AVIF")
"""Pillow's formats of picture files. Both have `HEIF` besides where pillow-heif is installed."""

MULTIPLE = "MPO"
"""What Pillow calls a JPEG file with more pictures behind the first, which `JPEG` opens."""


class UnsupportedPictureError(ValueError):
    """A file in a format that is not decoded."""


_ROTATION = 0x0112  # EXIF
# By its value, Pillow's operation. `ImageOps.exif_transpose` writes all EXIF data anew besides.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLES = 254, 258, 262, 277  # TIFF tags
_PLANAR, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 284, 338, 339
_COPY_OR_MASK = 1 | 4  # of _SUBFILE
_SIGNED, _FLOAT = 2, 3  # of _SAMPLE_FORMAT
_BYTES = {"L": 1, "P": 1, "1": 1, "LA": 4, "PA": 4, "I;16": 2, "I;16B": 2, "I;16L": 2, "La": 4}
_DECODERS = {"WEBP": 9, "HEIF": 9}
"""Bytes a pixel of a decoder's own pictures: measured for WEBP, and assumed for HEIF."""
_COEFFICIENT = 2
"""Bytes of each channel of each pixel, which the decoder of a JPEG of several scans holds."""
_COLUMN = 16
"""Bytes a column of the two rows that a decoder of PNG holds, with 16 bits for each of four
channels. They matter where a picture is one row."""
_ROW = 12
"""Bytes a row of Pillow's pictures, besides the pixels: a pointer, and what fills it up to 4."""
_PART = 2**19
"""Pixels that are converted at a time: a conversion of the whole would hold it three times."""


def decoded_bytes(picture: Any, structure: Structure) -> int:
    """Return the most bytes that `to_rgb` holds at once; decodes nothing.

    Args:
        picture: as opened.
        structure: of its file.
    """
    own = _BYTES.get(picture.mode, 4)  # Pillow stores RGB in four bytes a pixel
    # Pillow decodes a PNG file before it says whether it is rotated.
    is_rotated = structure.may_be_rotated if picture.format == "PNG" else _is_rotated(picture)
    decoder = _DECODERS.get(picture.format, 0)
    if structure.is_buffered:
        decoder += _COEFFICIENT * len(picture.getbands())
    width, height = int(picture.width), int(picture.height)
    pixels = width * height
    held = own + (own if is_rotated else 0) + decoder + 3
    sides = _COLUMN * width + _ROW * (height + (width if is_rotated else 0))
    return pixels * held + 32 * min(pixels, _PART) + sides


def open_picture(file: Any, formats: tuple[str, ...]) -> Any:
    """Open a picture (a path, or a seekable binary file) in one of Pillow's `formats`, or HEIF.

    Raises:
        UnsupportedPictureError: if it is in none of them; the message says what it is.
        Exception: what Pillow raises for a damaged file.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    with contextlib.suppress(ImportError):
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
    Pillow.init()
    allowed = [name for name in (*formats, "HEIF") if name in Pillow.OPEN]
    try:
        picture = Pillow.open(file, formats=allowed)
    # Ultralytics replaces `Image.open` by a function that tries HEIF for unknown formats, and
    # raises ImportError if that is not installed.
    except (UnidentifiedImageError, ImportError):
        raise UnsupportedPictureError(refusal(_start_of(file), formats)) from None
    if picture.format not in (*allowed, MULTIPLE):
        raise UnsupportedPictureError(refusal(_start_of(file), formats))
    return picture


def check_single(picture: Any) -> None:
    """Check that a file has one picture; those behind the first of a JPEG file are ignored.

    Raises:
        UnsupportedPictureError: if it has several.
    """
    if picture.format != MULTIPLE and (count := getattr(picture, "n_frames", 1)) > 1:
        raise UnsupportedPictureError(
            f"it is an animation of {count} pictures; send a file with one"
        )


def pages(picture: Any) -> Iterator[Any]:
    """Go to each page of a TIFF file, or frame of an animation, in turn; yield the picture.

    The reduced copies and masks that a TIFF file has beside its pages are left out, and what comes
    behind the first picture of a JPEG file.
    """
    count = 1 if picture.format == MULTIPLE else getattr(picture, "n_frames", 1)
    for number in range(count):
        picture.seek(number)
        is_copy = picture.format == "TIFF" and picture.tag_v2.get(_SUBFILE, 0) & _COPY_OR_MASK
        if count == 1 or not is_copy:
            yield picture


def to_rgb(picture: Any) -> Image:
    """Decode an opened picture to H×W×3 uint8 RGB; apply its rotation, ignore transparency.

    Of several pictures in a file the present one is taken. 16 bits become the upper 8, and
    floating-point values from 0 to 1 become 0 to 255.

    Raises:
        ValueError: if it has values for which there is no such rule.
        Exception: what the decoder raises for a damaged file.
    """
    from PIL import Image as Pillow

    is_inverted = picture.format == "TIFF" and _check_tiff(picture.tag_v2)
    picture.load()
    if (turn := _TURNS.get(_orientation(picture))) is not None:
        picture = picture.transpose(Pillow.Transpose[turn])
    width, height = picture.size
    if width * height <= _PART:  # the most frequent, without a copy of the picture
        return np.array(_part_to_rgb(picture, is_inverted))
    image = np.empty((height, width, 3), np.uint8)
    columns = min(width, _PART)
    rows = _PART // columns
    for top, left in product(range(0, height, rows), range(0, width, columns)):
        box = (left, top, min(left + columns, width), min(top + rows, height))
        image[top : top + rows, left : left + columns] = _part_to_rgb(
            picture.crop(box), is_inverted
        )
    return image


def _part_to_rgb(picture: Any, is_inverted: bool) -> Image:
    from PIL import Image as Pillow

    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < 2**16:
            raise ValueError("its pixels are integers beyond 0 to 65535; save it with 8 bits")
        upper = (values >> 8).astype(np.uint8)
        picture = Pillow.fromarray(255 - upper if is_inverted else upper)
    elif picture.mode == "F":
        values = np.asarray(picture)
        if values.size and not 0 <= float(values.min()) <= float(values.max()) <= 1:  # or NaN
            raise ValueError(
                "its pixels are floating-point numbers beyond 0 to 1; save it with 8 bits"
            )
        picture = Pillow.fromarray(np.round(values * 255).astype(np.uint8))
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _check_tiff(tags: Any) -> bool:
    """Check that Pillow decodes a TIFF page right; return whether it leaves white at 0.

    Raises:
        ValueError: if it has another meaning than Pillow gives it.
    """
    bits, kinds = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    photometric, samples = tags.get(_PHOTOMETRIC, 1), tags.get(_SAMPLES, 1)
    extra = tags.get(_EXTRA_SAMPLES, ())
    if _SIGNED in kinds or (_FLOAT not in kinds and max(bits) > 16):
        sign = "signed" if _SIGNED in kinds else "unsigned"
        raise ValueError(
            f"its pixels are {sign} {max(bits)}-bit integers, whose white is not known; "
            "save it with 8 or 16 bits, unsigned"
        )
    if max(bits) > 8 and samples > 1 and tags.get(_PLANAR, 1) == 2:
        raise ValueError(
            f"its {samples} channels of {max(bits)} bits are stored one behind the other, which "
            "Pillow misreads; save it with 8 bits, or with interleaved channels"
        )
    if photometric in (0, 1) and samples > 1 and not set(extra) & {1, 2}:
        raise ValueError(f"it has {samples} channels that are no colours; save it as RGB or gray")
    return bool(photometric == 0 and max(bits) == 16)


def _start_of(file: Any) -> bytes:
    if hasattr(file, "seek"):
        file.seek(0)
        return bytes(file.read(SIGNATURE_BYTES))
    with Path(file).open("rb") as opened:
        return opened.read(SIGNATURE_BYTES)


def _is_rotated(picture: Any) -> bool:
    return _orientation(picture) in _TURNS


def _orientation(picture: Any) -> Any:
    """Return the EXIF orientation; 1, upright, where the EXIF data are damaged."""
    with contextlib.suppress(Exception):
        found = picture.getexif().get(_ROTATION, 1)
        return found if isinstance(found, int) else 1
    return 1
