"""Decode untrusted images: an encoded file to H×W×3 uint8 RGB, or an error.

The size is checked before any pixel is decoded, only common formats are accepted, and every error
of a decoder is reported as an invalid image, not as a server error.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError
from rightbatch._serve.sources.decoding import (
    MAX_PIXELS,
    PHOTOS,
    UnsupportedPictureError,
    check_single,
    decoded_bytes,
    open_picture,
    to_rgb,
)
from rightbatch._serve.sources.structure import CostlyFileError, Structure, inspect

if TYPE_CHECKING:
    from rightbatch._serve.models.protocol import Image


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of requests.

    `body_bytes`: largest body; `pixels`: largest image; `held_bytes`: all bodies and images in
    memory together; `upload_seconds`: longest upload.
    """

    body_bytes: int = 20_000_000
    pixels: int = MAX_PIXELS
    held_bytes: int = 1_000_000_000
    upload_seconds: float = 30.0


class BadImageError(Exception):
    """A body that is not an accepted image.

    `status` is the HTTP status: 413 too large, 415 unknown format, 422 damaged or
    costly to decode.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decode(body: bytes, limits: Limits = Limits()) -> Image:
    """Decode an image to H×W×3 uint8 RGB; apply its EXIF rotation, ignore transparency.

    Raises:
        BadImageError: if it is not an image, damaged, or larger than allowed.
        MissingExtraError: if Pillow is not installed.
    """
    picture, _ = _checked(body, limits)
    try:
        return to_rgb(picture)
    except MemoryError:
        raise BadImageError(413, "not enough memory to decode the image") from None
    except Exception as error:  # decoders raise many types for damaged files
        raise BadImageError(422, f"the image is damaged: {_line(error)}") from None


def bytes_to_decode(body: bytes, limits: Limits = Limits()) -> int:
    """Return the most bytes that `decode` holds besides the body; decodes no pixel.

    Raises:
        BadImageError: as `decode`.
        MissingExtraError: if Pillow is not installed.
    """
    picture, structure = _checked(body, limits)
    return decoded_bytes(picture, structure)


def _checked(body: bytes, limits: Limits) -> tuple[Any, Structure]:
    """Open an image that is within the limits; return it, and how its file is built."""
    if len(body) > limits.body_bytes:
        raise BadImageError(413, too_long_message(limits))
    try:
        structure = inspect(body)
    except CostlyFileError as error:
        raise BadImageError(422, f"the image is not accepted: {error}") from None
    picture = _read_header(body)
    if picture.width * picture.height > limits.pixels:
        raise BadImageError(
            413,
            f"the image has {picture.width}×{picture.height} pixels, "
            f"more than the limit of {limits.pixels}",
        )
    try:
        check_single(picture)
    except UnsupportedPictureError as error:
        raise BadImageError(415, f"the body is not accepted: {error}") from None
    return picture, structure


def too_long_message(limits: Limits) -> str:
    """Return the message for a body that exceeds the limit."""
    return f"the body is longer than the limit of {limits.body_bytes} bytes"


def _read_header(body: bytes) -> Any:
    """Open the image without decoding its pixels."""
    try:
        from PIL import Image as Pillow
    except ImportError:
        raise MissingExtraError("Pillow", "serve") from None
    if not body:
        raise BadImageError(
            415, f"the body is empty: send a {', '.join(PHOTOS[:-1])} or {PHOTOS[-1]} file"
        )
    try:
        return open_picture(io.BytesIO(body), PHOTOS)
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise BadImageError(413, f"the image is too large: {_line(error)}") from None
    except UnsupportedPictureError as error:
        raise BadImageError(415, f"the body is not accepted: {error}") from None
    except Exception as error:
        raise BadImageError(422, f"the image is damaged: {_line(error)}") from None


def _line(error: BaseException) -> str:
    """Return the message in one line, without the address of Pillow's file object."""
    text = " ".join(str(error).split())
    return text if text and "object at 0x" not in text else type(error).__name__
