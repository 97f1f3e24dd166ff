"""Find the JPEG files in a stream of bytes by their own markers.

Cameras put the dashes into the header's boundary, leave out the first boundary, send wrong lengths
or none. The end of a JPEG file stands in the file itself, so none of that is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

JPEG_START = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in compressed data; 00 is an escaped FF
_FILL = re.compile(rb"\xff+")  # before a marker, as many as the camera likes
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA


class JpegStream:
    """Collects the parts of a stream and yields the files that are complete.

    A file that is cut off, because the next one begins inside it or it is longer than `most` bytes,
    is yielded as None.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._data = bytearray()
        self._place = 0  # of the next marker, once a file has begun
        self._in_scan = False
        self._has_begun = False

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
            yield self._take() if state == "whole" else None
            if state == "cut":
                self._restart(max(self._place, 2))

    def _find_start(self) -> bool:
        start = self._data.find(JPEG_START)
        if start < 0:
            del self._data[: max(0, len(self._data) - len(JPEG_START) + 1)]
            return False
        del self._data[:start]
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

    def _take(self) -> bytes:
        file = bytes(self._data[: self._place])
        self._restart(self._place)
        return file

    def _restart(self, place: int) -> None:
        del self._data[:place]
        self._has_begun = False
