"""Formatting and parsing of bytes and durations."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch import UsageError
from rightbatch._units import format_bytes, format_seconds, parse_bytes, parse_seconds

DECIMAL = {"kb": 1, "mb": 2, "gb": 3, "tb": 4}
BINARY = {"kib": 1, "mib": 2, "gib": 3, "tib": 4}
FACTORS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for unit, power in DECIMAL.items()},
    **{unit: 1024**power for unit, power in BINARY.items()},
}


@given(
    st.integers(1, 4000),
    st.sampled_from(sorted(FACTORS)),
    st.sampled_from([str.lower, str.upper, str.title]),
    st.sampled_from(["{}{}", "{} {}", "  {}{} ", "{}.0{}", "0{}{}"]),
)
def test_every_unit_is_parsed_in_any_case(number: int, unit: str, case: object, form: str) -> None:
    written = form.format(number, case(unit))  # type: ignore[operator]
    assert parse_bytes(written) == number * FACTORS[unit]


@given(st.integers(1, 2**53))
def test_a_plain_number_is_bytes(size: int) -> None:
    assert parse_bytes(size) == parse_bytes(str(size)) == size


@pytest.mark.parametrize(
    ("text", "size"), [("1.5GiB", 3 * 2**29), (".5 kB", 500), ("0.25MiB", 2**18), ("1.9B", 1)]
)
def test_fractions_are_truncated_to_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


NO_SIZES = [
    *("", " ", "GiB", "two", "nan", "inf", "1e9", "2GX", "2,5GB", "2 GiB more", "½GiB"),
    *("0", "0GiB", "0.4B", "-2GiB", 0, -1),
]


@pytest.mark.parametrize("text", NO_SIZES)
def test_an_invalid_size_raises_an_error_with_the_valid_units(text: str | int) -> None:
    with pytest.raises(UsageError, match=r"B, KB, MB, GB, TB, KiB, MiB, GiB, TiB") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


@given(st.one_of(st.integers(1, 2**49), st.floats(1, 2**49)))
def test_formatted_bytes_have_three_digits_and_parse_to_within_them(size: float) -> None:
    written = format_bytes(size)
    number, unit = written.split()
    digits = number.replace(".", "").lstrip("0")
    assert len(digits) <= 3
    assert unit == "B" or len(digits) == 3 or float(number) < 1
    assert parse_bytes(written) == pytest.approx(size, rel=0.0051, abs=0.5 + 0.005 * 1024)


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (-(2**31), "-2.00 GiB"),
        (int(999.6 * 2**20), "0.98 GiB"),
        (int(9.996 * 2**30), "10.0 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes_at_the_edges_of_their_units(size: int, written: str) -> None:
    assert format_bytes(size) == written


@given(st.floats(0, 400_000))
def test_formatted_seconds_parse_to_within_their_digits(seconds: float) -> None:
    written = format_seconds(seconds)
    factors = {"s": 1.0, "min": 60.0, "h": 3600.0}
    read = sum(float(n) * factors[unit] for n, unit in re.findall(r"([\d.]+) (\w+)", written))
    precision = {"s": 0.05, "min": 0.5, "h": 60.0}[re.findall("[a-z]+", written)[0]]
    assert abs(read - seconds) <= precision + 0.5
    assert re.fullmatch(r"[0-5]?\d\.\d s|[0-5]?\d min [0-5]\d s|\d+ h [0-5]\d min", written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90", 90),
        (4, 4),
        (0.5, 0.5),
        ("90 s", 90),
        ("2sec", 2),
        ("3min", 180),
        ("3m", 180),
        ("1.5 h", 5400),
        (" 1H ", 3600),
        ("50ms", 0.05),
    ],
)
def test_durations_are_read_as_people_write_them(written: str | float, seconds: float) -> None:
    assert parse_seconds(written) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["3 fortnights", "", "min", "0", "0s", "-1", -1, 0, "1e3", "1:30"])
def test_what_is_no_duration_is_refused_with_what_would_be(text: str | float) -> None:
    with pytest.raises(UsageError, match="write a number with one of ms, s, min, h") as caught:
        parse_seconds(text)
    assert repr(text) in str(caught.value)
