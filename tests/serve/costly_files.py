"""Picture files whose decoding costs far more than their pixels, written from scratch."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image as Pillow


def saved(picture: Any, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width: int, height: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """A black RGB picture with chunks before or behind its pixels."""
    pack = zlib.compressobj(9)
    left, rows = height * (1 + 3 * width), b""
    while left:
        rows += pack.compress(bytes(min(left, 2**20)))
        left -= min(left, 2**20)
    rows += pack.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = (b"\x89PNG\r\n\x1a\n", header, before, chunk(b"IDAT", rows), after, chunk(b"IEND"))
    return b"".join(parts)


def turned() -> bytes:
    """The EXIF data of a picture on its side."""
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return exif.tobytes().removeprefix(b"Exif\0\0")


def jpeg(prefix: bytes = b"", size: tuple[int, int] = (64, 48)) -> bytes:
    file = saved(Pillow.new("RGB", size, "red"), "JPEG")
    return file[:2] + prefix + file[2:]


def _first_scan(file: bytes) -> int:
    place = 2
    while file[place + 1] != 0xDA:
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    return place


def jpeg_of_scans(count: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A gray progressive JPEG with `count` scans, of which all but the first change nothing."""
    file = saved(Pillow.new("L", size, 128), "JPEG", progressive=True)
    start = _first_scan(file)
    end = start + 10
    while not (file[end] == 0xFF and file[end + 1]):
        end += 1
    # A Huffman table of one symbol: 2^14 blocks, and as many as the 14 bits behind it say, are 0.
    table = b"\xff\xc4" + struct.pack(">H", 20) + b"\x10" + bytes([1, *[0] * 15]) + b"\xe0"
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\x01\x01\x00\x01\x3f\x00"
    blocks = -(-size[0] // 8) * -(-size[1] // 8)
    assert blocks <= 2**14
    return file[:end] + table + (scan + b"\x7f\xff\x00") * (count - 1) + b"\xff\xd9"


def jpeg_not_interleaved(size: tuple[int, int]) -> bytes:
    """A baseline JPEG whose channels come one behind the other, each in a scan of its own."""
    file = saved(Pillow.new("RGB", size, (128, 128, 128)), "JPEG", subsampling=0)
    gray = saved(Pillow.new("L", size, 128), "JPEG")
    start = _first_scan(gray)
    data = gray[start + 2 + int.from_bytes(gray[start + 2 : start + 4], "big") : -2]
    scans = [b"\xff\xda\x00\x08\x01" + bytes([one, 0, 0, 63, 0]) + data for one in (1, 2, 3)]
    return file[: _first_scan(file)] + b"".join(scans) + b"\xff\xd9"


def bmp_run_length(width: int, height: int) -> bytes:
    """Of 16 colours, in runs of 250 pixels."""
    palette, data = bytes(64), (b"\xfa\x11" * (width // 250) + b"\0\0") * height + b"\0\1"
    start = 54 + len(palette)
    head = struct.pack("<IHHI", start + len(data), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 4, 2, len(data), 0, 0, 16, 0)
    return b"BM" + head + info + palette + data


def webp(parts: int) -> bytes:
    file = saved(Pillow.new("RGB", (64, 48)), "WEBP", exif=turned()) + b"none\0\0\0\0" * parts
    return file[:4] + struct.pack("<I", len(file) - 8) + file[8:]


def long_exif() -> bytes:
    """EXIF data with as many entries as there may be."""
    entries = b"".join(struct.pack("<HHII", 1 + number, 3, 1, 1) for number in range(65_535))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + entries + bytes(4)


def _in_segments(exif: bytes) -> bytes:
    parts = [b"Exif\0\0" + exif[start : start + 60_000] for start in range(0, len(exif), 60_000)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts)


def _webp_with_exif(exif: bytes) -> bytes:
    return saved(Pillow.new("RGB", (64, 48)), "WEBP", exif=exif)


COSTLY: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG, chunks before": (lambda: png(64, 48, before=chunk(b"noNe") * 20_000), "10000 parts"),
    "PNG, chunks behind": (lambda: png(64, 48, after=chunk(b"noNe") * 20_000), "10000 parts"),
    "PNG, empty pixels": (lambda: png(64, 48, before=chunk(b"IDAT") * 20_000), "10000 parts"),
    "PNG, texts": (
        lambda: png(64, 48, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**6))) * 30),
        "8000000 bytes",
    ),
    "JPEG, comments": (lambda: jpeg(b"\xff\xfe\x00\x02" * 20_000), "10000 parts"),
    "JPEG, fill bytes": (lambda: jpeg(b"\xff" * 20_000), "10000 parts"),
    "JPEG, no markers": (lambda: jpeg(b"\xff\xfe\x00\x02" + bytes(20_000)), "10000 parts"),
    "JPEG, scans": (lambda: jpeg_of_scans(200), "100 scans"),
    "JPEG, tables": (
        lambda: jpeg_of_scans(2)[:-2] + b"\xff\xc4\x00\x02" * 20_000 + b"\xff\xd9",
        "10000 parts",
    ),
    "BMP, run lengths": (lambda: bmp_run_length(1250, 1000), "run-length encoded"),
    "PNG, EXIF": (lambda: png(64, 48, after=chunk(b"eXIf", long_exif())), "200000 bytes of EXIF"),
    "JPEG, EXIF": (lambda: jpeg(_in_segments(long_exif())), "200000 bytes of EXIF"),
    "WebP, EXIF": (lambda: _webp_with_exif(long_exif()), "200000 bytes of EXIF"),
    "WebP, chunks": (lambda: webp(20_000), "10000 parts"),
}
"""By name: what makes the file, and what its refusal says."""
