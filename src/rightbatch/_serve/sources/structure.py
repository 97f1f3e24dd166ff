"""Check how a picture file is built, before a decoder parses it.

Some files of a few kilobytes keep a decoder busy for minutes, or take hundreds of megabytes, with
few pixels: millions of empty parts, thousands of scans over the whole picture, text that unpacks
to a thousandfold. No camera and no program writes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_PARTS = 10_000
"""Chunks of a PNG or WebP file, segments of a JPEG file: each costs Pillow some microseconds. PNG
files of 20 MB have 2500, of 8 KiB each."""
MOST_SCANS = 100
"""Of a JPEG file: each goes through the whole picture. Programs write about ten."""
MOST_TEXT = 8_000_000
"""Bytes of the compressed texts and profiles of a PNG file, unpacked; Pillow takes 64 million."""
MOST_EXIF = 200_000
"""Bytes of EXIF data, which Pillow parses in Python; JPEG files have 65,533 at most."""
MOST_RUN_LENGTH_PIXELS = 1_000_000
"""Of a run-length encoded BMP file, which Pillow decodes in Python."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_BMP = b"BM"

_PACKED = frozenset((b"zTXt", b"iTXt", b"iCCP"))  # iTXt may be
_WITH_ROTATION = frozenset((b"eXIf", b"tEXt", b"zTXt", b"iTXt"))  # EXIF or XMP data, perhaps
_PIECE = 1_000_000  # bytes to which Pillow unpacks a text at most
_EXPANSION = 1032  # most bytes to which zlib unpacks one

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # in compressed data
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))  # markers without a length
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1

_RUN_LENGTH = (1, 2)  # BMP compression


class CostlyFileError(ValueError):
    """A file whose decoding would cost far more than its pixels."""


@dataclass(frozen=True, slots=True)
class Structure:
    """What the decoder's memory depends on, besides the pixels.

    `is_buffered`: a JPEG file of several scans, whose decoder holds all coefficients.
    `may_be_rotated`: a PNG file with EXIF or XMP data, perhaps behind the pixels.
    """

    is_buffered: bool = False
    may_be_rotated: bool = False


def inspect(file: bytes) -> Structure:
    """Check a whole file, of any format; a damaged one is left to its decoder.

    Raises:
        CostlyFileError: if its decoding would cost far more than its pixels.
    """
    if file.startswith(_PNG):
        return _inspect_png(file)
    if file.startswith(_JPEG):
        return _inspect_jpeg(file)
    if file.startswith(_BMP):
        _check_bmp(file)
    elif file.startswith(b"RIFF"):
        _check_webp(file)
    return Structure()


def _inspect_png(file: bytes) -> Structure:
    place, parts, text, may_be_rotated = len(_PNG), 0, 0, False
    while place + 8 <= len(file):
        parts += 1
        _check_parts(parts)
        length, kind = int.from_bytes(file[place : place + 4], "big"), file[place + 4 : place + 8]
        if kind == b"IEND":
            break
        if kind in _PACKED:
            text += min(_PIECE, _EXPANSION * length)
            if text > MOST_TEXT:
                raise CostlyFileError(f"its texts may unpack to more than {MOST_TEXT} bytes")
        _check_exif(length if kind == b"eXIf" else 0)
        may_be_rotated = may_be_rotated or kind in _WITH_ROTATION
        place += 12 + length
    return Structure(may_be_rotated=may_be_rotated)


def _inspect_jpeg(file: bytes) -> Structure:
    place, parts, exif = 2, 0, 0
    components, is_progressive = 0, False
    while place + 5 <= len(file):
        parts += 1  # Pillow skips what is no marker byte by byte
        _check_parts(parts)
        kind = file[place + 1]
        if file[place] != 0xFF or kind in (0x00, 0xFF):
            place += 1
        elif kind in _ALONE:
            place += 2
        elif kind == _SOS:
            is_buffered = is_progressive or file[place + 4] < components
            if is_buffered:
                _check_scans(file, place, parts)
            return Structure(is_buffered=is_buffered)
        else:
            if kind == _APP1 and file.startswith(b"Exif", place + 4):
                exif += _length(file, place)
                _check_exif(exif)  # Pillow joins them
            if kind in _FRAMES and place + 9 < len(file):
                components, is_progressive = file[place + 9], kind in _PROGRESSIVE
            place += 2 + max(2, _length(file, place))
    return Structure()


def _check_scans(file: bytes, place: int, parts: int) -> None:
    """Check the scans of a JPEG file from the first one on, which begins at `place`."""
    scans = 0
    while (found := _MARKER.search(file, place)) is not None:
        place, kind = found.start(), file[found.start() + 1]
        parts += 1
        _check_parts(parts)
        if kind == _EOI:
            return
        if kind == _SOS:
            scans += 1
            if scans > MOST_SCANS:
                raise CostlyFileError(f"it has more than {MOST_SCANS} scans")
        place += 2 if kind in _ALONE else 2 + max(2, _length(file, place))


def _check_webp(file: bytes) -> None:
    place, parts = 12, 0
    while place + 8 <= len(file):
        parts += 1
        _check_parts(parts)
        length = int.from_bytes(file[place + 4 : place + 8], "little")
        _check_exif(length if file.startswith(b"EXIF", place) else 0)
        place += 8 + length + length % 2


def _check_bmp(file: bytes) -> None:
    header = int.from_bytes(file[14:18], "little")
    compression = int.from_bytes(file[30:34], "little")
    if header < 40 or compression not in _RUN_LENGTH:
        return
    width = int.from_bytes(file[18:22], "little", signed=True)
    height = int.from_bytes(file[22:26], "little", signed=True)
    if abs(width * height) > MOST_RUN_LENGTH_PIXELS:
        raise CostlyFileError(
            f"it is run-length encoded, with more than {MOST_RUN_LENGTH_PIXELS} pixels; "
            "save it as PNG"
        )


def _length(file: bytes, place: int) -> int:
    return int.from_bytes(file[place + 2 : place + 4], "big")


def _check_exif(length: int) -> None:
    if length > MOST_EXIF:
        raise CostlyFileError(f"it has more than {MOST_EXIF} bytes of EXIF data")


def _check_parts(count: int) -> None:
    if count > MOST_PARTS:
        raise CostlyFileError(f"it has more than {MOST_PARTS} parts besides its pixels")
