"""An image as somebody sent it: an encoded file in, H×W×3 uint8 RGB out, or why not.

What was sent is not trusted. Its size is read and judged before a pixel is decoded, only formats
that cameras and browsers write are looked at, and whatever a decoder raises says that the image is
bad, never that the server is.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rightbatch._errors import MissingExtraError

if TYPE_CHECKING:
    from rightbatch._serve.models.protocol import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost, and all of them together.

    `body_bytes` of a body and `pixels` of its image, `held_bytes` of all bodies and images that the
    server has at once, `upload_seconds` for a body to arrive.
    """

    body_bytes: int = 20_000_000
    pixels: int = 50_000_000
    held_bytes: int = 1_000_000_000
    upload_seconds: float = 30.0


class BadImageError(Exception):
    """A body that is no image that is taken; `status` is that of HTTP.

    413 where it is too large, 415 where it is of no known format, 422 where it is broken.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decode(body: bytes, limits: Limits = Limits()) -> Image:
    """H×W×3 uint8 RGB, the right way up; without transparency, which is ignored.

    Raises:
        BadImage: if it is none, is broken or is larger than allowed.
        MissingExtraError: if Pillow is not installed.
    """
    if len(body) > limits.body_bytes:
        raise BadImageError(413, too_long_message(limits))
    picture = _opened(body)
    if picture.width * picture.height > limits.pixels:
        raise BadImageError(
            413,
            f"the image has {picture.width}×{picture.height} pixels, "
            f"more than the {limits.pixels} that are taken",
        )
    try:
        return _rgb(picture)
    except MemoryError:
        raise BadImageError(413, "there is no memory to decode the image") from None
    except Exception as error:  # a decoder meets bytes that nobody foresaw
        raise BadImageError(422, f"the image is broken: {_line(error)}") from None


def too_long_message(limits: Limits) -> str:
    """What is said of a body that is longer than the limit."""
    return f"the body is longer than the {limits.body_bytes} bytes that are taken"


def _opened(body: bytes) -> Any:
    """The header, and nothing of the pixels."""
    try:
        from PIL import Image as Pillow
        from PIL import UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("Pillow", "serve") from None
    kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    if not body:
        raise BadImageError(415, f"the body is empty: send a {kinds} file")
    try:
        picture = Pillow.open(io.BytesIO(body), formats=FORMATS)
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise BadImageError(413, f"the image is too large: {_line(error)}") from None
    # Ultralytics puts a function of its own in the place of `open`, which tries HEIF where Pillow
    # knows no format, and raises ImportError where that is not installed.
    except (UnidentifiedImageError, ImportError):
        raise BadImageError(415, f"the body is no {kinds} file") from None
    except Exception as error:
        raise BadImageError(422, f"the image is broken: {_line(error)}") from None
    if picture.format not in FORMATS:
        raise BadImageError(415, f"the body is a {picture.format} file, and no {kinds}")
    return picture


def _rgb(picture: Any) -> Image:
    from PIL import Image as Pillow
    from PIL import ImageOps

    picture.load()
    with contextlib.suppress(Exception):  # of damaged EXIF; the pixels are good
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode.startswith("I"):  # 16 bits, of which a conversion would cut off the upper
        picture = Pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _line(error: BaseException) -> str:
    """One line, without the address of the object that Pillow read from."""
    text = " ".join(str(error).split())
    return text if text and "object at 0x" not in text else type(error).__name__
