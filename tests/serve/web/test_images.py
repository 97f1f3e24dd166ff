"""Images as they are sent, among them those that are meant to do harm."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from costly_files import chunk, jpeg_not_interleaved, png, saved
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rightbatch._serve.sources.decoding import _PART, PHOTOS
from rightbatch._serve.web.images import BadImageError, Limits, decode

Pillow = pytest.importorskip("PIL.Image")


def picture(height: int = 24, width: int = 32) -> NDArray[np.uint8]:
    """A gradient down and another one across, so that a turn shows."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 250, height, dtype=np.uint8)[:, None]
    image[..., 1] = np.linspace(0, 250, width, dtype=np.uint8)[None]
    image[..., 2] = 40
    return image


def encoded(image: NDArray[np.uint8], format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, format, **options)
    return file.getvalue()


def refusal(body: bytes, **limits: int) -> BadImageError:
    with pytest.raises(BadImageError) as caught:
        decode(body, Limits(**limits))
    assert str(caught.value)
    return caught.value


@pytest.mark.parametrize("format", PHOTOS)
def test_every_known_format_comes_back_as_it_was_sent(format: str) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    image = decode(encoded(picture(), format, **options.get(format, {})))
    assert image.dtype == np.uint8
    assert image.shape == (24, 32, 3)
    assert np.abs(image.astype(int) - picture()).max() <= (4 if format == "JPEG" else 0)
    assert image.flags.writeable and image.flags.c_contiguous


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda image: image),
        (3, lambda image: image[::-1, ::-1]),
        (6, lambda image: np.rot90(image)),
        (8, lambda image: np.rot90(image, -1)),
    ],
)
def test_a_telephone_held_sideways_gives_an_upright_image(orientation: int, turned: object) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    sent = encoded(turned(picture()), exif=exif)  # type: ignore[operator]
    assert np.array_equal(decode(sent), picture())


def test_damaged_exif_does_not_cost_the_image() -> None:
    sent = encoded(picture(), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert np.array_equal(decode(sent), picture())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    file = io.BytesIO()
    drawn = Pillow.fromarray(picture()).convert(mode)
    drawn.save(file, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    assert decode(file.getvalue()).shape == (24, 32, 3)


def test_of_sixteen_bits_the_upper_eight_are_taken() -> None:
    file = io.BytesIO()
    Pillow.fromarray(np.full((4, 5), 0xAB12, np.uint16)).save(file, "PNG")
    assert (decode(file.getvalue()) == 0xAB).all()


@pytest.mark.parametrize("body", [b"", b"no image", b"<svg/>", b"\x00" * 1000])
def test_what_is_no_image_is_of_no_known_format(body: bytes) -> None:
    assert refusal(body).status == 415


@pytest.mark.parametrize("format", ["GIF", "TIFF", "ICO", "PPM", "EPS", "PDF"])
def test_formats_that_no_camera_writes_are_not_opened(format: str) -> None:
    assert refusal(encoded(picture(), format)).status == 415


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_half_an_image_is_broken(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    sent = encoded(noise, format)
    assert refusal(sent[: len(sent) // 2]).status == 422


def test_a_body_that_is_too_long_is_not_looked_at() -> None:
    error = refusal(bytes(101), body_bytes=100)
    assert error.status == 413
    assert "longer than the limit of 100 bytes" in str(error)


def test_the_most_pixels_are_taken_and_one_more_is_not() -> None:
    sent = encoded(picture())
    assert decode(sent, Limits(pixels=24 * 32)).shape == (24, 32, 3)
    error = refusal(sent, pixels=24 * 32 - 1)
    assert error.status == 413
    assert "32×24 pixels" in str(error)


def png_that_says(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def webp_that_says(width: int, height: int) -> bytes:
    frames = [Pillow.new("RGB", (16, 16), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    body = bytearray(file.getvalue())
    assert body[12:16] == b"VP8X"
    body[24:27] = (width - 1).to_bytes(3, "little")
    body[27:30] = (height - 1).to_bytes(3, "little")
    return bytes(body)


@pytest.mark.parametrize(
    "bomb",
    [
        png_that_says(9_000, 9_000),
        png_that_says(12_000, 12_000),  # where Pillow warns
        png_that_says(100_000, 100_000),  # where it refuses
        webp_that_says(9_000, 9_000),
        webp_that_says(16_000, 16_000),
    ],
    ids=["png", "png-warned-of", "png-refused", "webp", "webp-refused"],
)
def test_a_small_file_that_says_it_is_huge_is_refused(bomb: bytes) -> None:
    assert len(bomb) < 1000
    assert refusal(bomb).status == 413


def test_bombs_cost_no_memory() -> None:
    """In a process of its own, whose peak is known: images are refused before they are decoded."""
    script = f"""
        import sys, warnings
        sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]!r}
        warnings.simplefilter("ignore")
        from rightbatch._device.proc import peak_resident
        from test_images import BadImageError, decode, encoded, picture
        from test_images import png_that_says, webp_that_says
        decode(encoded(picture()))
        before = peak_resident()
        for bomb in [png_that_says(13_000, 13_000), webp_that_says(13_000, 13_000)]:
            try:
                decode(bomb)
            except BadImageError as error:
                assert error.status == 413, error
            else:
                raise AssertionError("taken")
        print((peak_resident() - before) // 2**20)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 50, "MiB more, for images of 500"


def test_text_that_unpacks_without_end_is_refused() -> None:
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 10_000_000, zip=True)
    sent = encoded(picture(), pnginfo=text)
    assert len(sent) < 100_000
    assert refusal(sent).status == 422


@given(
    st.sampled_from(PHOTOS),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=12),
    st.integers(1, 10_000),
)
@example("PNG", [], 8)
@example("JPEG", [(0, 0)], 10_000)
def test_damage_of_any_kind_gives_an_image_or_a_refusal(
    format: str, changes: list[tuple[int, int]], length: int
) -> None:
    body = bytearray(encoded(picture(), format)[:length])
    for place, value in changes:
        body[place % len(body)] = value
    image = error = None
    try:
        image = decode(bytes(body), Limits(pixels=100_000))
    except BadImageError as raised:
        error = raised
    if image is not None:
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    else:
        assert error is not None and error.status in (413, 415, 422)
        assert "object at 0x" not in str(error)


def test_of_a_photo_with_more_pictures_behind_it_the_first_is_taken() -> None:
    first, second = (Pillow.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    body = saved(first, "MPO", save_all=True, append_images=[second])
    exif = Pillow.Exif()
    exif[0x0112] = 6
    turned = saved(first, "MPO", save_all=True, append_images=[second], exif=exif)
    assert decode(body).shape == (30, 40, 3)
    assert decode(turned).shape == (40, 30, 3)
    for image in (decode(body), decode(turned)):
        assert np.abs(image.astype(int) - (254, 0, 0)).max() < 8
    with pytest.raises(BadImageError, match="damaged"):
        decode(body[:500])


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_is_refused_by_name(format: str) -> None:
    first, second = (Pillow.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    body = saved(first, format, save_all=True, append_images=[second])
    assert refusal(body).status == 415
    assert "an animation of 2 pictures; send a file with one" in str(refusal(body))


def test_a_photo_in_print_colours_is_converted() -> None:
    image = decode(saved(Pillow.new("RGB", (40, 30), "red").convert("CMYK"), "JPEG", quality=100))
    assert np.abs(image.astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("shape", [(1301, 1100), (2, 700_000)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1"])
def test_a_picture_of_many_parts_is_the_whole_one(mode: str, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    picture = Pillow.fromarray(noise).convert(mode)
    assert noise[..., 0].size > 2 * _PART
    expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(decode(saved(picture, "PNG")), expected)


def large(mode: str, format: str) -> Callable[[Any], bytes]:
    def make(exif: Any) -> bytes:
        options = {"progressive": True, "subsampling": 0} if format == "JPEG" else {}
        return saved(Pillow.new(mode, (4000, 4000)), format, exif=exif, **options)

    return make


def exif_chunk(exif: Any) -> bytes:
    return chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))


LARGE: dict[str, Callable[[Any], bytes]] = {
    **{f"PNG, {mode}": large(mode, "PNG") for mode in ("RGB", "RGBA", "P", "L", "I;16")},
    **{f"JPEG, {mode}": large(mode, "JPEG") for mode in ("RGB", "L", "CMYK")},
    "WebP, RGBA": large("RGBA", "WEBP"),
    "PNG, one row": lambda exif: png(16_000_000, 1, before=exif_chunk(exif)),
    "PNG, one column": lambda exif: png(1, 16_000_000, before=exif_chunk(exif)),
    "PNG, EXIF behind": lambda exif: png(4000, 4000, after=exif_chunk(exif)),
    "JPEG, not interleaved": lambda exif: jpeg_not_interleaved((4000, 4000)),
}
"""Bodies of 16 million pixels, by name."""


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", LARGE)
def test_what_decoding_needs_is_known_before(name: str, orientation: int, tmp_path: Path) -> None:
    """Measured in a child, which decodes an image of 16 million pixels."""
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    body = LARGE[name](exif)
    assert len(body) < 1_000_000
    script = """
        import sys
        from rightbatch._device.proc import peak_resident
        from rightbatch._serve.web.images import bytes_to_decode, decode
        body = sys.stdin.buffer.read()
        decode(body[:0] + open(sys.argv[1], "rb").read())
        before = peak_resident()
        needed = bytes_to_decode(body)
        assert peak_resident() - before < 10_000_000, "decoded before it was known"
        decode(body)
        used = peak_resident() - before
        assert used <= needed, (used, needed)
        assert needed <= int(sys.argv[2]) * 4000 * 4000, needed
    """
    small = tmp_path / "small.png"
    small.write_bytes(encoded(picture()))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            textwrap.dedent(script),
            str(small),
            "50" if "one" in name else "22",
        ],
        input=body,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
