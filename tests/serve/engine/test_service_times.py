"""The service table: what it knows between the sizes that ran, and how it follows what changes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch._serve.engine.service_times import ServiceTable, quantile

A, B = 1e-3, 4e-3  # seconds per item and per batch
SIZES = (1, 2, 4, 8, 16)


def line(size):
    return A * size + B


def linear_table(noise=(1.0,)):
    return ServiceTable({size: [line(size) * factor for factor in noise] for size in SIZES})


def serve(table, count, *, level=1.0, spread=0.02, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        size = rng.choice(SIZES)
        table.observe(size, level * line(size) * rng.lognormvariate(0, spread))


def test_sizes_that_ran_take_the_median_of_their_samples():
    table = ServiceTable({1: [3.0, 1.0, 2.0], 4: [9.0, 5.0]})
    assert table.seconds(1) == 2.0
    assert table.seconds(4) == 7.0
    assert table.sizes == (1, 4)
    assert table.largest == 4


@pytest.mark.parametrize("size", [3, 5, 11, 20, 64])
def test_sizes_between_and_beyond_lie_on_the_line(size):
    assert linear_table().seconds(size) == pytest.approx(line(size))


def test_a_line_that_falls_is_never_below_zero():
    assert ServiceTable({1: [2.0], 2: [1.0]}).seconds(100) > 0


def test_with_one_size_time_is_in_proportion():
    table = ServiceTable({4: [8.0]})
    assert table.seconds(1) == pytest.approx(2.0)
    assert table.seconds(6) == pytest.approx(12.0)
    assert table.line() == (2.0, 0.0)


def test_the_line_is_the_one_of_least_squares():
    samples = {1: [5.1e-3], 2: [5.8e-3], 4: [8.3e-3], 8: [11.9e-3], 16: [20.2e-3]}
    expected = np.polyfit(list(samples), [taken[0] for taken in samples.values()], 1)
    assert ServiceTable(samples).line() == pytest.approx(tuple(expected))


@settings(derandomize=True, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values, q):
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("samples", [{}, {0: [1.0]}, {1: []}])
def test_an_empty_table_is_refused(samples):
    with pytest.raises(ValueError, match="each with measured seconds"):
        ServiceTable(samples)


def test_a_level_that_doubles_is_followed_and_the_shape_stays():
    table = linear_table()
    serve(table, 100)
    serve(table, 60, level=2.0)
    for size in (*SIZES, 6):
        assert table.seconds(size) == pytest.approx(2 * line(size), rel=0.1)


def test_a_change_of_the_level_is_not_taken_for_noise():
    table = linear_table()
    serve(table, 200)
    for level in (2.0, 1.0, 2.0):
        serve(table, 60, level=level, seed=int(level))
        # 99 of 100 batches of this noise take less than 1.048 times the median.
        assert table.slow_level == pytest.approx(1.05 * level, rel=0.04)


def test_the_tail_is_the_quantile_of_the_noise():
    table = linear_table()
    rng = np.random.default_rng(0)
    noise = rng.lognormal(0, 0.2, size=600)
    for factor in noise:
        table.observe(8, line(8) * factor)
    assert table.slow_seconds(8) == pytest.approx(line(8) * np.quantile(noise, 0.99), rel=0.1)


def test_one_hiccup_of_a_calibration_is_no_tail():
    samples = {size: [line(size)] * 3 for size in SIZES}
    samples[2][1] *= 20
    assert ServiceTable(samples).slow_level == 1.0


def test_a_single_outlier_changes_nothing():
    table = linear_table()
    serve(table, 100)
    before = table.seconds(8)
    table.observe(8, 100.0)
    assert table.seconds(8) == pytest.approx(before, rel=0.01)


def test_a_shape_that_was_measured_wrong_is_put_right():
    samples = {size: [line(size)] for size in SIZES}
    samples[8] = [1.5 * line(8)]
    table = ServiceTable(samples)
    serve(table, 3000)
    assert table.seconds(8) == pytest.approx(line(8), rel=0.05)
    assert table.seconds(16) == pytest.approx(line(16), rel=0.05)


def test_a_size_that_comes_up_while_serving_joins_the_table():
    table = linear_table()
    table.observe(6, line(6))
    assert table.sizes == (1, 2, 4, 6, 8, 16)
