"""A strip of black and white blocks that says which camera took a frame, and which frame it is.

It survives H.264, and its check digits tell a damaged one. Plain Python: the RTSP server runs where
numpy is not installed.
"""

from __future__ import annotations

from typing import Any

BLOCK = 8  # pixels; half of what H.264 compresses at once
_CAMERA, _NUMBER, _CHECK = 4, 16, 8  # bits
WIDTH = BLOCK * (_CAMERA + _NUMBER + _CHECK)


def strip(camera: int, number: int) -> bytes:
    """A line of luminance, `WIDTH` pixels."""
    value = _value(camera, number % 2**_NUMBER)
    bits = range(_CAMERA + _NUMBER + _CHECK - 1, -1, -1)
    return b"".join((b"\xeb" if value >> bit & 1 else b"\x10") * BLOCK for bit in bits)


def read(image: Any) -> tuple[int, int] | None:
    """Camera and number of an H×W×3 array; None if there is no marker, or a damaged one."""
    if image.shape[1] < WIDTH:
        return None
    blocks = image[:BLOCK, :WIDTH].mean(axis=2).reshape(BLOCK, -1, BLOCK)
    levels = blocks[2:-2, :, 2:-2].mean(axis=(0, 2))
    value = 0
    for level in levels:
        value = value << 1 | int(level > 128)
    camera, number = value >> _NUMBER + _CHECK, value >> _CHECK & 2**_NUMBER - 1
    return (camera, number) if value == _value(camera, number) else None


def _value(camera: int, number: int) -> int:
    data = camera << _NUMBER | number
    return data << _CHECK | (data * 2654435761 >> 16) % 2**_CHECK
