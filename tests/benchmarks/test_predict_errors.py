"""The distribution of errors behind the bands of `predict`, from brackets."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from benchmarks.predict_public.errors import band, interval, quantiles, turnbull
from benchmarks.predict_public.run import STORED
from rightbatch._predict.band import RESERVED


def test_known_values_give_their_own_quantiles() -> None:
    values = [random.Random(0).gauss(1, 0.05) for _ in range(200)]
    low, middle, high = quantiles([(v, v) for v in values], [0.05, 0.5, 0.95])
    ordered = sorted(values)
    assert (low, middle, high) == (ordered[9], ordered[99], ordered[189])


def test_brackets_wider_than_the_spread_give_it_all_the_same() -> None:
    draw = random.Random(0)
    intervals = []
    for _ in range(2000):
        value, offset = draw.gauss(1, 0.05), draw.uniform(0, 0.35)
        intervals.append((value - offset, value - offset + 0.35))
    found = quantiles(intervals, [0.05, 0.5, 0.95])
    assert found == pytest.approx([1 - 1.645 * 0.05, 1, 1 + 1.645 * 0.05], abs=0.02)


def test_mass_lies_where_intervals_overlap() -> None:
    innermost, mass = turnbull([(0.0, 2.0), (1.0, 3.0), (1.5, 4.0), (5.0, 6.0)])
    assert innermost.tolist() == [[1.5, 2.0], [5.0, 6.0]]
    assert mass == pytest.approx([0.75, 0.25])


def line(half: str, largest: int, **more: Any) -> dict[str, Any]:
    return {"half": half, "ran": 96, "failed": 128, "largest": largest, "notes": [], **more}


def test_a_row_says_between_which_ratios_the_bytes_are() -> None:
    assert interval(line("fit", 120)) == (120 / 128, 120 / 96)
    assert interval(line("fit", 120, notes=["a batch of 121 fails with memory left"])) is None
    assert interval({"reserved": 100, "peak_bytes": 110}) == (1.1, 1.1)
    assert interval({"error": "not followed"}) is None


def test_a_band_is_of_one_half_and_tested_on_the_other() -> None:
    rows = [line("fit", 112)] * 10 + [line("test", 112)] * 3 + [line("test", 200)]
    found = band(rows)
    assert found is not None
    assert (found.rows, found.tested, found.overlapping) == (10, 4, 0.75)
    assert found.low == found.high == pytest.approx((112 / 128 + 112 / 96) / 2)
    assert band([line("fit", 112)]) is None


def test_the_band_that_is_printed_is_that_of_the_stored_rows() -> None:
    lines = [json.loads(one) for one in STORED.read_text().splitlines()]
    found = band(one for one in lines if one["kind"] != "peft")
    assert found is not None
    assert pytest.approx((found.low, found.high), abs=0.005) == RESERVED
