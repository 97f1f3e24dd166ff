"""Find the JPEG files in a stream of bytes by their own markers.

Cameras put the dashes into the header's boundary, leave out the first boundary, send wrong lengths
or none. The end of a JPEG file stands in the file itself, so none of that is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

JPEG_START = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in compressed data; 00 is an escaped FF
_FILL = re.compile(rb"\xff+")  # before a marker, as many as the camera likes
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_SEGMENTS = 2**18  # bytes in which the MPF segment is looked for
_NUMBER_OF_IMAGES = 0xB001
_MOST_PICTURES = 16  # in a file; what says more is damaged


class JpegStream:
    """Collects the parts of a stream and yields the files that are complete.

    A file that is cut off, because the next one begins inside it or it is longer than `most` bytes,
    is yielded as None. Pictures that belong to the one before them (MPO, as telephones write) are
    left out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = bytearray()
        self._place = 0  # of the next marker, once a file has begun
        self._in_scan = False
        self._has_begun = False
        self._behind = 0  # pictures that belong to the last file, if they follow at once

    def feed(self, part: bytes) -> Iterator[bytes | None]:
        """Add bytes; yield the files that end in them."""
        self._data += part
        while True:
            if not self._has_begun and not self._find_start():
                return
            state = self._walk()
            if state == "more":
                if len(self._data) <= self._most:
                    return
                state = "cut"
            if state == "cut":
                self._behind = 0
                yield None
                self._restart(max(self._place, 2))
                continue
            file = self._take()
            if self._behind:
                self._behind -= 1
            else:
                self._behind = _pictures_behind(file)
                yield file

    def _find_start(self) -> bool:
        start = self._data.find(JPEG_START)
        if start < 0:
            start = max(0, len(self._data) - len(JPEG_START) + 1)
            self._drop(start)
            return False
        self._drop(start)
        self._has_begun, self._in_scan, self._place = True, False, 2
        return True

    def _walk(self) -> str:
        """Follow the markers; return `whole`, `cut`, or `more` if the file goes on."""
        data = self._data
        while True:
            if self._in_scan:
                found = _MARKER.search(data, self._place)
                if found is None:
                    self._place = max(self._place, len(data) - 1)
                    return "more"
                self._place, self._in_scan = found.start(), False
            if len(data) < self._place + 2:
                return "more"
            if data[self._place] != 0xFF:
                return "cut"
            kind = data[self._place + 1]
            if kind == 0xFF and (fill := _FILL.match(data, self._place)) is not None:
                self._place = fill.end() - 1
            elif kind == _EOI:
                self._place += 2
                return "whole"
            elif kind == _SOI:
                return "cut"
            elif kind in _ALONE:
                self._place += 2
            else:
                if len(data) < self._place + 4:
                    return "more"
                length = int.from_bytes(data[self._place + 2 : self._place + 4], "big")
                if length < 2:
                    return "cut"
                if len(data) < self._place + 2 + length:
                    return "more"
                self._place += 2 + length
                self._in_scan = kind == _SOS

    def _drop(self, count: int) -> None:
        """Leave out bytes between two files."""
        if count:
            self._behind = 0
            del self._data[:count]

    def _take(self) -> bytes:
        file = bytes(self._data[: self._place])
        self._restart(self._place)
        return file

    def _restart(self, place: int) -> None:
        del self._data[:place]
        self._has_begun = False


def _pictures_behind(file: bytes) -> int:
    """Return how many pictures follow a JPEG file, as its MPF segment (CIPA DC-007) says."""
    start = file.find(b"MPF\0", 0, _SEGMENTS)
    if start < 0:
        return 0
    tiff = file[start + 4 : start + 4 + _SEGMENTS]
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"
    place = int.from_bytes(tiff[4:8], order)
    entries = int.from_bytes(tiff[place : place + 2], order)
    for entry in range(place + 2, place + 2 + 12 * min(entries, 16), 12):
        if int.from_bytes(tiff[entry : entry + 2], order) == _NUMBER_OF_IMAGES:
            count = int.from_bytes(tiff[entry + 8 : entry + 12], order)
            return count - 1 if 1 <= count <= _MOST_PICTURES else 0
    return 0
