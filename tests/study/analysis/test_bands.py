from __future__ import annotations

import numpy as np
import pytest
from study_runs import curve, made

from rightbatch._study.analysis.bands import PLACES, band, thin
from rightbatch._study.records import AXES


def runs_of(values, steps=None, speeds=None):
    steps = [np.arange(1.0, len(v) + 1) for v in values] if steps is None else steps
    speeds = speeds or [1000.0] * len(values)
    return [
        made(10, seed, {"loss": curve(10, np.array(x, float), np.array(v, float), speed)})
        for seed, (v, x, speed) in enumerate(zip(values, steps, speeds, strict=True))
    ]


def test_median_least_and_most_of_seeds_that_were_measured_at_the_same_places():
    values = np.random.default_rng(0).standard_normal((5, 50))
    found = band(runs_of(values), "loss", "steps")
    assert found is not None
    assert found.x == pytest.approx(np.arange(1, 51))
    assert found.middle == pytest.approx(np.median(values, axis=0))
    assert found.low == pytest.approx(values.min(axis=0))
    assert found.high == pytest.approx(values.max(axis=0))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_seeds_that_were_measured_at_different_places_agree_with_numpy_at_each(count):
    random = np.random.default_rng(count)
    steps = [np.sort(random.uniform(0, 100, 40)) for _ in range(count)]
    values = [np.sin(x / 10) + seed for seed, x in enumerate(steps)]
    found = band(runs_of(values, steps), "loss", "steps")
    assert found is not None
    for place, middle, low, high in zip(found.x, found.middle, found.low, found.high, strict=True):
        there = [
            np.interp(place, x, v)
            for x, v in zip(steps, values, strict=True)
            if x[0] <= place <= x[-1]
        ]
        assert (middle, low, high) == pytest.approx((np.median(there), min(there), max(there)))


def test_each_axis_has_its_own_places():
    runs = runs_of([[3, 2, 1], [3, 2, 1]], speeds=[10.0, 20.0])
    by = {axis: band(runs, "loss", axis) for axis in AXES}
    assert all(by.values())
    assert by["examples"].x == pytest.approx([10, 20, 30])
    assert by["epochs"].x == pytest.approx([0.01, 0.02, 0.03])
    # The faster seed is done after 1.5 seconds; the slower one is half of all, and goes on.
    assert by["seconds"].x == pytest.approx([0.5, 1.0, 1.5, 2.0, 3.0])
    assert by["seconds"].middle == pytest.approx([3.0, 2.5, (2.5 + 1) / 2, 2.0, 1.0])


@pytest.mark.parametrize("spaced", [np.linspace, np.geomspace])
def test_many_places_become_few_that_are_dense_where_the_measurements_are(spaced):
    steps = [spaced(1, 1e5, 2000) * (1 + 0.001 * seed) for seed in range(3)]
    values = [np.log(x) for x in steps]
    found = band(runs_of(values, steps), "loss", "steps")
    assert found is not None
    assert len(found.x) <= PLACES
    assert found.middle == pytest.approx(np.log(found.x), abs=0.01)
    gaps = np.diff(found.x if spaced is np.linspace else np.log(found.x))
    assert gaps.max() < 3 * np.median(gaps)
    assert found.x[[0, -1]] == pytest.approx([1.001, 1.001e5])  # where two of three go on


def test_a_band_ends_where_fewer_than_half_of_its_runs_go_on():
    found = band(runs_of([np.ones(10), np.ones(10), np.ones(30)]), "loss", "steps")
    assert found is not None
    assert found.x[-1] == 10
    half = band(runs_of([np.ones(10), np.ones(30)]), "loss", "steps")
    assert half is not None
    assert half.x[-1] == 30


def test_what_is_not_finite_leaves_no_hole():
    found = band(runs_of([[3, np.nan, 1], [3, np.inf, 1]]), "loss", "steps")
    assert found is not None
    assert found.x == pytest.approx([1, 3])
    assert np.isfinite(found.middle).all()


def test_measurements_out_of_order_are_put_in_order():
    found = band(runs_of([[1, 3, 2]], steps=[[1, 3, 2]]), "loss", "steps")
    assert found is not None
    assert found.middle == pytest.approx([1, 2, 3])


def test_there_is_no_band_of_what_was_never_measured():
    assert band(runs_of([[1.0, 2.0]]), "accuracy", "steps") is None
    assert band(runs_of([[np.nan, np.nan]]), "loss", "steps") is None
    assert band([], "loss", "steps") is None
    unknown = [made(10, 0, {"loss": curve(10, np.full(2, np.nan), np.ones(2))})]
    assert band(unknown, "loss", "seconds") is None


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 2000, 54_321])
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(count):
    values = np.random.default_rng(count).standard_normal(count)
    whole = curve(8, np.arange(1.0, count + 1), values)
    few = thin(whole, 1000)
    assert len(few.values) <= 1000
    assert few.values.max() == values.max()
    assert few.values.min() == values.min()
    assert (few.steps[0], few.steps[-1]) == (1, count)
    assert (np.diff(few.steps) > 0).all()
    assert few.values == pytest.approx(values[few.steps.astype(int) - 1])
    assert few.examples == pytest.approx(8 * few.steps)


def test_a_thinned_curve_survives_values_that_are_not_finite():
    values = np.full(5000, np.nan)
    values[::7] = 1.0
    values[100] = np.inf
    few = thin(curve(8, np.arange(1.0, 5001), values), 100)
    assert len(few.values) <= 100
    assert np.isfinite(few.values).any()
