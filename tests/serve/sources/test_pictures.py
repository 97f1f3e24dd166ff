"""Frames from picture files and from Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rightbatch._serve.sources.frames import DamagedFrameError, FrameSource, Timeouts
from rightbatch._serve.sources.open import open_source
from rightbatch.testing import FrameSourceContract


def _made(source: object) -> FrameSource:
    return open_source(source).make(Timeouts())  # type: ignore[arg-type]


def _all(source: FrameSource) -> list[np.ndarray]:
    source.open()
    images = []
    while (found := source.read()) is not None:
        images.append(found[0])
    source.close()
    return images


def _noise(count: int, height: int = 8, width: int = 12) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, image in enumerate(_noise(5)):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    return tmp_path


class TestAFolder(FrameSourceContract):
    @pytest.fixture
    def source(self, folder: Path) -> Iterator[FrameSource]:
        source = _made(folder)
        yield source
        source.close()


class TestAnIterable(FrameSourceContract):
    @pytest.fixture
    def source(self) -> Iterator[FrameSource]:
        source = _made(_noise(4))
        yield source
        source.close()


class TestAGenerator(FrameSourceContract):
    @pytest.fixture
    def source(self) -> Iterator[FrameSource]:
        source = _made(image for image in _noise(4))
        yield source
        source.close()


class TestAGeneratorThatFillsOneArrayAgain(FrameSourceContract):
    @pytest.fixture
    def source(self) -> Iterator[FrameSource]:
        def belt() -> Iterator[np.ndarray]:
            picture = np.empty((8, 12, 3), np.uint8)
            for number in range(4):
                picture[:] = number
                yield picture

        source = _made(belt())
        yield source
        source.close()


def test_a_folder_brings_its_pictures_in_the_order_of_their_names(folder: Path) -> None:
    (folder / "notes.txt").write_text("no picture")
    assert np.array_equal(_all(_made(folder)), _noise(5))


def test_a_single_picture_is_one_frame(folder: Path) -> None:
    assert np.array_equal(_all(_made(folder / "2.png")), _noise(5)[2:3])


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("RGBA", "webp"), ("P", "png"), ("CMYK", "jpg"), ("1", "tif"), ("LA", "png")],
)
def test_pictures_of_every_kind_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.new("RGB", (12, 8), (255, 255, 255)).convert(mode)
    image.save(tmp_path / f"white.{suffix}")
    [read] = _all(_made(tmp_path))
    assert read.shape == (8, 12, 3)
    assert read.min() >= 250


def test_of_pictures_of_16_bits_the_upper_8_are_taken(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 512, dtype=np.uint16).reshape(8, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    [read] = _all(_made(tmp_path))
    assert np.array_equal(read, np.repeat((values // 256)[..., None], 3, axis=2))


def test_a_picture_that_a_camera_took_on_its_side_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image = Image.new("RGB", (16, 8))
    image.paste((255, 0, 0), (0, 0, 8, 8))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    [read] = _all(_made(tmp_path))
    assert read.shape == (16, 8, 3)
    assert read[2, 4, 0] > 200
    assert read[13, 4, 0] < 50


def test_a_picture_that_cannot_be_read_is_named_and_the_next_one_comes(folder: Path) -> None:
    (folder / "1.png").write_bytes(b"garbage")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    source = _made(folder)
    source.open()
    assert source.read() is not None
    with pytest.raises(DamagedFrameError, match=r"1\.png"):
        source.read()
    with pytest.raises(DamagedFrameError, match=r"2\.png"):
        source.read()
    assert len([source.read(), source.read()]) == 2
    assert source.read() is None


def test_a_picture_of_absurd_size_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 95)
    source = _made(folder)
    source.open()
    with pytest.raises(DamagedFrameError, match="pixels"):
        source.read()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (np.zeros((4, 4), np.uint8), "4×4 uint8"),
        (np.zeros((4, 4, 4), np.uint8), "4×4×4 uint8"),
        (np.zeros((4, 4, 3), np.float32), "4×4×3 float32"),
        ((np.zeros((4, 4, 3), np.uint8), "boxes"), "tuple"),
    ],
)
def test_an_iterable_of_something_else_says_what_it_yielded(frame: object, said: str) -> None:
    source = _made([frame])
    source.open()
    with pytest.raises(TypeError, match=f"H×W×3 uint8.*got {said}"):
        source.read()


def test_arrays_of_any_layout_become_contiguous() -> None:
    [image] = _noise(1)
    [read] = _all(_made([image[:, ::-1]]))
    assert read.flags.c_contiguous
    assert np.array_equal(read, image[:, ::-1])


def test_only_decoders_of_pictures_run_whatever_a_file_is_called(tmp_path: Path) -> None:
    """Pillow gives an EPS file to Ghostscript."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps", "EPS")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    source = _made(tmp_path)
    source.open()
    with pytest.raises(DamagedFrameError, match="it is an EPS file, not JPEG"):
        source.read()


def test_floating_point_pictures_are_scaled_or_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "unit.tif")
    Image.fromarray(values * 1000).save(tmp_path / "wide.tif")
    source = _made(tmp_path)
    source.open()
    read = source.read()
    assert read is not None
    np.testing.assert_array_equal(read[0][..., 0], np.round(values * 255))
    with pytest.raises(DamagedFrameError, match=r"wide\.tif.*beyond 0 to 1"):
        source.read()


def test_of_a_photo_with_more_pictures_behind_it_the_first_is_taken(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert np.abs(_all(_made(tmp_path))[0].astype(int) - (254, 0, 0)).max() < 8
