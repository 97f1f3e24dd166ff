"""Picture files as people have them: each is served right, or refused with the documented words."""

from __future__ import annotations

import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from documented import documented
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from rightbatch._errors import UsageError
from rightbatch._serve.sources.frames import Timeouts
from rightbatch._serve.sources.open import open_source

Y, X = np.mgrid[0:48, 0:64]
RGB = np.stack([X * 4, Y * 5, 255 - X * 4], -1).astype(np.uint8)
GRAY16 = ((Y * 64 + X) * 21).astype(np.uint16)
GRAY = (GRAY16 >> 8).astype(np.uint8)
PICTURE = Image.fromarray(RGB)
TURNED = Image.fromarray(RGB[::-1, ::-1])
Frames = list[NDArray[Any]]


def tiff(values: NDArray[Any], photometric: int, *, kind: int = 1, planar: int = 1) -> bytes:
    """An uncompressed TIFF file of one page, of any type and number of channels."""
    height, width, count = (*values.shape, 1)[:3]
    data = (values if planar == 1 else values.transpose(2, 0, 1)).tobytes()
    strips = count if planar == 2 else 1
    tags: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [8 * values.itemsize] * count,
        259: [1],
        262: [photometric],
        277: [count],
        278: [height],
        284: [planar],
        339: [kind] * count,
        279: [len(data) // strips] * strips,
    }
    colours = 3 if photometric == 2 else 1
    if count > colours:
        tags[338] = [0] * (count - colours)
    place = 8 + 2 + 12 * (len(tags) + 1) + 4
    beside = sum(4 * len(one) for one in tags.values() if len(one) > 1) + 4 * strips
    tags[273] = [place + beside + strip * (len(data) // strips) for strip in range(strips)]
    entries = more = b""
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            packed, more = struct.pack("<I", place + len(more)), more + packed
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + packed
    start = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return start + entries + bytes(4) + more.ljust(beside, b"\0") + data


def saved(name: str, picture: Image.Image = PICTURE, *expected: Any, **options: Any) -> Any:
    def make(folder: Path) -> tuple[Path, Frames]:
        more = [one.copy() for one in options.get("append_images", [])]  # `save` leaves traces
        picture.copy().save(folder / name, **options | {"append_images": more})
        return folder / name, list(expected) or [RGB]

    return make


def written(name: str, content: bytes, *expected: Any) -> Any:
    def make(folder: Path) -> tuple[Path, Frames]:
        (folder / name).write_bytes(content)
        return folder / name, list(expected)

    return make


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def lab() -> Image.Image:
    to_lab = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
    found = ImageCms.profileToProfile(PICTURE, *to_lab, outputMode="LAB")
    assert found is not None
    return found


LUMA = np.asarray(PICTURE.convert("L"))
FLAT = Image.new("RGB", (64, 48), (0, 0, 255))
BLUE = np.asarray(FLAT)
NAN = np.where(X + Y == 0, np.nan, GRAY16 / 65535).astype(np.float32)
SEVERAL: dict[str, Any] = {"save_all": True, "append_images": [TURNED]}
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"

KINDS: dict[str, Callable[[Path], tuple[Path, Frames]]] = {
    "JPEG": saved("a.jpg", quality=95),
    "JPEG, progressive": saved("a.jpg", quality=95, progressive=True),
    "JPEG, gray": saved("a.jpg", PICTURE.convert("L"), LUMA, quality=95),
    "JPEG, CMYK": saved("a.jpg", PICTURE.convert("CMYK"), quality=95),
    "JPEG with EXIF rotation": saved(
        "a.jpg", PICTURE.transpose(Image.Transpose.ROTATE_90), exif=rotated(6), quality=95
    ),
    "JPEG with more pictures behind it (MPO)": saved("a.jpg", format="MPO", quality=95, **SEVERAL),
    "JPEG called .jfif": saved("a.jfif", format="JPEG", quality=95),
    "PNG, 1 bit": saved("a.png", Image.fromarray(LUMA > 127), np.where(LUMA > 127, 255, 0)),
    "PNG, gray": saved("a.png", PICTURE.convert("L"), LUMA),
    "PNG, gray, 16 bits": saved("a.png", Image.fromarray(GRAY16), GRAY),
    "PNG, palette": saved("a.png", FLAT.convert("P"), BLUE),
    "PNG with transparency": saved("a.png", PICTURE.convert("RGBA")),
    "PNG, animated": saved("a.png", PICTURE, RGB, RGB[::-1, ::-1], **SEVERAL),
    "WebP": saved("a.webp", lossless=True),
    "WebP, animated": saved("a.webp", PICTURE, RGB, RGB[::-1, ::-1], lossless=True, **SEVERAL),
    "BMP": saved("a.bmp"),
    "GIF, animated": saved(
        "a.gif", FLAT, BLUE, 0 * BLUE, save_all=True, append_images=[Image.new("RGB", (64, 48))]
    ),
    "AVIF": saved("a.avif", quality=95),
    "HEIC without pillow-heif": written("a.heic", HEIC),
    "HEIC called .jpg": written("a.jpg", HEIC),
    "TIFF, 8 bits": saved("a.tif"),
    "TIFF, RGB, 16 bits": written("a.tif", tiff(RGB.astype(np.uint16) * 257, 2), RGB),
    "TIFF, RGB, 16 bits, planar": written("a.tif", tiff(RGB.astype(np.uint16), 2, planar=2)),
    "TIFF, RGB, 8 bits, planar": written("a.tif", tiff(RGB, 2, planar=2), RGB),
    "TIFF, RGB and infrared": written("a.tif", tiff(np.dstack([RGB, LUMA]), 2), RGB),
    "TIFF, gray, 16 bits": written("a.tif", tiff(GRAY16, 1), GRAY),
    "TIFF, gray, 16 bits, white is 0": written("a.tif", tiff(GRAY16, 0), 255 - GRAY),
    "TIFF, gray, float, 0 to 1": written(
        "a.tif", tiff((GRAY / 255).astype(np.float32), 1, kind=3), GRAY
    ),
    "TIFF, gray, float, beyond 0 to 1": written("a.tif", tiff(GRAY.astype(np.float32), 1, kind=3)),
    "TIFF, gray, float, with NaN": written("a.tif", tiff(NAN, 1, kind=3)),
    "TIFF, gray, float, 16 or 64 bits": written("a.tif", tiff(GRAY / 255, 1, kind=3)),
    "TIFF, RGB, float": written("a.tif", tiff((RGB / 255).astype(np.float32), 2, kind=3)),
    "TIFF, 32-bit integers": written("a.tif", tiff(GRAY.astype(np.int32), 1, kind=2)),
    "TIFF, signed integers": written("a.tif", tiff(GRAY16.astype(np.int16), 1, kind=2)),
    "TIFF, 2 channels": written("a.tif", tiff(RGB[..., :2].copy(), 1)),
    "TIFF, 5 channels": written("a.tif", tiff(np.dstack([RGB, RGB[..., :2]]), 1)),
    "TIFF, CMYK": saved("a.tif", PICTURE.convert("CMYK")),
    "TIFF, LAB": saved("a.tif", lab()),
    "TIFF, several pages": saved("a.tif", PICTURE, RGB, RGB[::-1, ::-1], **SEVERAL),
    "raw photo (.dng, .cr2, .nef, …)": written("a.dng", tiff(RGB, 2)),
    "PDF": saved("a.pdf"),
    "DICOM": written("a.dcm", bytes(128) + b"DICM" + bytes(64)),
    "text called .png": written("a.png", b"text"),
}
if not features.check("avif"):
    del KINDS["AVIF"]


def read_all(path: Path) -> Frames:
    source = open_source(path).make(Timeouts())
    source.open()
    try:
        images = []
        while (found := source.read()) is not None:
            images.append(found[0])
        return images
    finally:
        source.close()


def test_the_table_has_every_kind() -> None:
    assert documented("Pictures").keys() | KINDS.keys() == documented("Pictures").keys()
    assert documented("Pictures").keys() - KINDS.keys() <= {"AVIF"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_served_right_or_refused_as_documented(kind: str, tmp_path: Path) -> None:
    if "HEIC" in kind and find_spec("pillow_heif") is not None:
        pytest.skip("pillow-heif is here")
    path, expected = KINDS[kind](tmp_path)
    outcome = documented("Pictures")[kind]
    if outcome == "served":
        images = read_all(path)
        assert len(images) == len(expected)
        for image, right in zip(images, expected, strict=True):
            right = right if right.ndim == 3 else np.repeat(right[..., None], 3, axis=2)
            assert image.dtype == np.uint8 and image.shape == right.shape
            assert np.abs(image.astype(int) - right).mean() < 2.5
        return
    with pytest.raises((UsageError, ValueError)) as raised:
        read_all(path)
    assert outcome in str(raised.value)


def test_a_telephones_heic_is_served_where_pillow_heif_is(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(PICTURE).save(tmp_path / "a.heic", quality=95)
    [image] = read_all(tmp_path / "a.heic")
    assert np.abs(image.astype(int) - RGB).mean() < 2.5


def test_in_a_folder_each_page_is_a_frame_and_what_is_refused_is_named(tmp_path: Path) -> None:
    KINDS["TIFF, several pages"](tmp_path)
    (tmp_path / "b.heic").write_bytes(HEIC)
    PICTURE.save(tmp_path / "c.png")
    source = open_source(tmp_path).make(Timeouts())
    source.open()
    shapes = [source.read(), source.read()]
    assert all(shapes)
    with pytest.raises(Exception, match=r"b\.heic: it is a HEIC picture: pip install pillow-heif"):
        source.read()
    assert source.read() is not None
    assert source.read() is None


def test_the_reduced_copies_of_a_tiff_file_are_left_out(tmp_path: Path) -> None:
    small = PICTURE.resize((16, 12))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    PICTURE.copy().save(tmp_path / "a.tif", save_all=True, append_images=[small])
    with Image.open(tmp_path / "a.tif") as both:
        assert getattr(both, "n_frames", 1) == 2
    assert [image.shape for image in read_all(tmp_path / "a.tif")] == [(48, 64, 3)]
