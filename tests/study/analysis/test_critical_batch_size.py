from __future__ import annotations

import math

import numpy as np
import pytest

from rightbatch._study.analysis.critical_batch_size import fit_critical

SIZES = (8, 16, 32, 64, 128, 256)


def steps_at(size, steps_min=300.0, critical=60.0):
    return steps_min * (1 + critical / size)


def scattered(seed, seeds=3, spread=0.05, misfit=0.0, sizes=SIZES, critical=60.0):
    random = np.random.default_rng(seed)
    return {
        size: list(
            steps_at(size, critical=critical)
            * np.exp(spread * random.standard_normal(seeds) + misfit * random.standard_normal())
        )
        for size in sizes
    }


@pytest.mark.parametrize("critical", [10.0, 60.0, 200.0])
@pytest.mark.parametrize("steps_min", [3.0, 40_000.0])
def test_steps_that_lie_on_the_curve_give_its_parameters(critical, steps_min):
    exact = {size: [steps_at(size, steps_min, critical)] * 3 for size in SIZES}
    found, reason = fit_critical(exact)
    assert found is not None, reason
    assert found.steps_min == pytest.approx(steps_min, rel=1e-5)
    assert found.examples_min == pytest.approx(steps_min * critical, rel=1e-5)
    assert found.batch_size == pytest.approx(critical, rel=1e-5)
    assert found.rms_log_error < 1e-5
    assert found.low <= found.batch_size <= found.high


def test_the_two_hyperbolas_of_the_paper_hold_along_the_curve():
    found, _ = fit_critical({size: [steps_at(size)] for size in SIZES})
    assert found is not None
    for size, steps, examples in found.to_dict([4.0, 60.0, 1000.0])["curve"]:
        assert examples == pytest.approx(size * steps)
        left = (steps / found.steps_min - 1) * (examples / found.examples_min - 1)
        assert left == pytest.approx(1)
    at_critical = found.steps(found.batch_size)
    assert at_critical == pytest.approx(2 * found.steps_min)


def test_the_measured_pilot_has_the_critical_batch_size_that_was_published_with_it():
    found, reason = fit_critical({4: [5600], 16: [1450], 64: [516], 256: [300]})
    assert found is not None
    assert found.batch_size == pytest.approx(97, abs=1)
    assert found.rms_log_error == pytest.approx(0.035, abs=0.001)
    assert "4 batch sizes" in reason and "3.5%" in reason


def squares(steps, steps_min, ratio):
    return sum(
        (math.log(each) - math.log(steps_min * (1 + ratio / size))) ** 2
        for size, runs in steps.items()
        for each in runs
    )


@pytest.mark.parametrize("seed", range(3))
def test_no_place_of_a_fine_grid_fits_better(seed):
    steps = scattered(seed, seeds=2, spread=0.15)
    steps[256] = steps[256][:1]  # sizes need not have as many runs
    found, _ = fit_critical(steps)
    assert found is not None
    best = squares(steps, found.steps_min, found.batch_size)
    around = np.geomspace(0.5, 2, 61)
    assert best <= 1e-9 + min(
        squares(steps, found.steps_min * a, found.batch_size * b) for a in around for b in around
    )


@pytest.mark.parametrize(
    ("seeds", "spread", "misfit"), [(3, 0.1, 0.0), (1, 0.05, 0.0), (3, 0.02, 0.05)]
)
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds, spread, misfit):
    repeats = 80
    covered = 0
    for repeat in range(repeats):
        found, reason = fit_critical(scattered(repeat, seeds, spread, misfit), seed=repeat)
        assert found is not None, reason
        covered += found.low <= 60 <= found.high
    # 95% ± 2.4% is expected; 4 standard errors are allowed.
    assert covered / repeats > 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats)


def test_more_seeds_narrow_the_interval():
    widths = []
    for seeds in (3, 48):
        found, _ = fit_critical(scattered(0, seeds))
        assert found is not None
        widths.append(math.log(found.high / found.low))
    assert widths[1] < 0.5 * widths[0]


def test_runs_that_agree_on_steps_off_the_curve_do_not_narrow_the_interval():
    random = np.random.default_rng(0)
    off = {size: steps_at(size) * math.exp(0.15 * random.standard_normal()) for size in SIZES}
    found, _ = fit_critical({size: [steps] * 5 for size, steps in off.items()})
    assert found is not None
    assert found.high / found.low > 1.3


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_sizes_are_not_fitted(count):
    steps = {size: [steps_at(size)] * 3 for size in SIZES[:count]}
    found, reason = fit_critical(steps | {1024: [None, None]})
    assert found is None
    assert f"{count or 'none'} did" in reason
    assert "1024 (0 of 2 runs reached the target: left out)" in reason


def test_sizes_that_are_all_small_say_above():
    steps = scattered(0, sizes=(2, 4, 8, 16), critical=5000.0, spread=0.03)
    found, reason = fit_critical(steps)
    assert found is None
    above = float(reason.split("above ")[1].split(":")[0])
    assert 1 < above <= 16


def test_sizes_that_are_all_large_say_below():
    found, reason = fit_critical(scattered(0, sizes=(256, 512, 1024, 2048), critical=2.0))
    assert found is None
    below = float(reason.split("below ")[1].split(":")[0])
    assert below >= 256


@pytest.mark.parametrize("critical", [4.0, 5000.0])
def test_what_is_said_instead_of_a_number_holds(critical):
    for repeat in range(20):
        found, reason = fit_critical(scattered(repeat, critical=critical), seed=repeat)
        assert found is None
        if "above " in reason:
            assert float(reason.split("above ")[1].split(":")[0]) <= critical
        else:
            assert float(reason.split("below ")[1].split(":")[0]) >= critical


def test_steps_that_scatter_without_a_law_give_no_number():
    random = np.random.default_rng(3)
    steps = {size: list(500 * np.exp(2 * random.standard_normal(2))) for size in SIZES[:4]}
    found, reason = fit_critical(steps)
    assert found is None
    assert "cannot be estimated" in reason


def test_a_size_that_few_runs_reached_is_left_out_and_named():
    steps = {size: [steps_at(size)] * 3 for size in SIZES}
    lucky = steps | {512: [10.0, None, None]}
    found, reason = fit_critical(lucky)
    assert found is not None
    assert found.sizes == SIZES
    assert found.batch_size == pytest.approx(60, rel=1e-5)
    assert "512 (1 of 3 runs reached the target: left out)" in reason


def test_a_size_that_most_runs_reached_is_fitted_and_named():
    steps = {size: [steps_at(size)] * 3 for size in SIZES}
    found, reason = fit_critical(steps | {256: [steps_at(256), steps_at(256), None]})
    assert found is not None
    assert found.sizes == SIZES
    assert "256 (2 of 3 runs reached the target: its steps are those of the faster ones)" in reason


def test_the_answer_is_the_same_each_time():
    assert fit_critical(scattered(1)) == fit_critical(scattered(1))
