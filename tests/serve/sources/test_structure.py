"""Files that would keep a decoder busy, or take memory, far beyond what their pixels do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from costly_files import (
    COSTLY,
    bmp_run_length,
    chunk,
    jpeg,
    jpeg_not_interleaved,
    jpeg_of_scans,
    png,
    saved,
    turned,
    webp,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from rightbatch._serve.sources.structure import CostlyFileError, Structure, inspect

PICTURE = Pillow.new("RGB", (64, 48))


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_file_is_refused_by_its_kind(name: str) -> None:
    make, message = COSTLY[name]
    with pytest.raises(CostlyFileError, match=message):
        inspect(make())


@pytest.mark.parametrize(
    "file",
    [
        png(64, 48, before=chunk(b"tEXt", b"a\0b") * 1000, after=chunk(b"noNe") * 1000),
        jpeg(b"\xff\xff\xff" + b"\xff\xfe\x00\x04ab" * 1000),
        jpeg_of_scans(100),
        jpeg_not_interleaved((64, 48)),
        bmp_run_length(1000, 1000),
        webp(1000),
        saved(PICTURE, "MPO", save_all=True, append_images=[Pillow.new("L", (9, 9))]),
    ],
)
def test_what_programs_write_is_accepted_and_decoded(file: bytes) -> None:
    inspect(file)
    with Pillow.open(io.BytesIO(file)) as picture:
        assert np.asarray(picture.convert("RGB")).size


def test_what_follows_a_jpeg_file_is_no_scan_of_it() -> None:
    """Telephones append films to their photos, in which any byte may follow an FF."""
    file = saved(PICTURE, "JPEG", progressive=True)
    assert inspect(file + b"\xff\xda\x00\x08" * 1000) == Structure(is_buffered=True)


def test_it_says_what_the_memory_depends_on() -> None:
    assert inspect(saved(PICTURE, "JPEG")) == Structure()
    assert inspect(saved(PICTURE, "JPEG", progressive=True)).is_buffered
    assert inspect(jpeg_not_interleaved((64, 48))).is_buffered
    assert inspect(saved(PICTURE, "PNG")) == Structure()
    assert inspect(png(64, 48, after=chunk(b"eXIf", turned()))).may_be_rotated


@given(
    st.sampled_from([png(8, 8), jpeg_of_scans(3), bmp_run_length(250, 8), webp(3)]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=12),
    st.integers(0, 2000),
)
def test_damage_of_any_kind_is_left_to_the_decoder(
    file: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(file[:length])
    for place, value in changes:
        if damaged:
            damaged[place % len(damaged)] = value
    try:
        assert isinstance(inspect(bytes(damaged)), Structure)
    except CostlyFileError:
        pass
