from __future__ import annotations

import numpy as np
import pytest
from study_runs import TARGET, curve, made, reaching

from rightbatch._study.analysis.by_size import Spread, size_figures, steps_to_target
from rightbatch._study.analysis.grouping import group_runs


def figures_of(runs, target=TARGET):
    (size,) = group_runs(runs, target).sizes
    return size_figures(size, target)


def test_figures_are_median_least_and_most_of_the_seeds():
    steps = [120.0, 100.0, 170.0]
    found = figures_of([reaching(8, each, seed) for seed, each in enumerate(steps)])
    assert found.steps is not None and found.seconds is not None and found.examples is not None
    assert vars(found.steps) == pytest.approx(
        {"middle": 120, "low": 100, "high": 170, "count": 3}, rel=1e-3
    )
    assert found.examples.middle == pytest.approx(8 * 120, rel=1e-3)
    assert found.seconds.middle == pytest.approx(8 * 120 / 1000, rel=1e-3)
    assert found.examples_per_second is not None
    assert found.examples_per_second.middle == pytest.approx(1000)


def test_runs_that_ended_count_and_those_under_way_only_once_they_reached_it():
    runs = [
        reaching(8, 100.0, 0),
        reaching(8, 110.0, 1, status="running"),
        made(8, 2, status="running"),
        made(8, 3, status="diverged"),
        made(8, 4, status="failed"),
    ]
    found = figures_of(runs)
    assert (found.count, found.of, found.runs) == (2, 4, 5)
    assert found.statuses == {"finished": 1, "running": 2, "diverged": 1, "failed": 1}
    assert found.is_reached
    (size,) = group_runs(runs, TARGET).sizes
    assert steps_to_target(size, TARGET) == [
        pytest.approx(100, rel=1e-3),
        pytest.approx(110, rel=1e-3),
        None,
        None,
    ]


def test_a_size_that_fewer_than_half_reached_has_not_reached_it():
    runs = [reaching(8, 100.0, 0), *(made(8, seed) for seed in (1, 2))]
    found = figures_of(runs)
    assert not found.is_reached
    assert found.to_dict()["reached"]["count"] == 1


def test_without_a_target_nothing_is_said_of_it():
    assert figures_of([reaching(8, 100.0)], None).to_dict()["reached"] is None


def test_the_gap_is_evaluation_less_training_loss_at_the_end_of_runs_that_finished():
    def run(seed, status="finished"):
        steps = np.arange(1.0, 101)
        loss = np.where(steps <= 90, 5.0, 0.3)
        evaluated = curve(8, np.array([50.0, 100.0]), np.array([2.0, 0.4 + 0.1 * seed]))
        curves = {"loss": curve(8, steps, loss), "evaluation_loss": evaluated}
        return made(8, seed, curves, status=status)

    gap = figures_of([run(0), run(1), run(2), run(9, "stopped")]).gap
    assert gap is not None
    assert (gap.middle, gap.low, gap.high) == pytest.approx((0.2, 0.1, 0.3))


def test_the_noise_of_the_way_is_that_of_the_later_half_and_of_a_whole_batch():
    steps = np.arange(1.0, 101)
    late = steps > 50
    curves = {
        "loss_spread": curve(8, steps, np.where(late, np.where(steps % 2, 3.0, 1.0), 99.0)),
        "gradient_variance": curve(8, steps, np.where(late, 16.0, 99.0)),
    }
    found = figures_of([made(8, 0, curves)])
    assert found.loss_spread is not None and found.gradient_variance_of_batch is not None
    assert found.loss_spread.middle == pytest.approx(5**0.5)  # (9 + 1)/2 of the variances
    assert found.gradient_variance_of_batch.middle == pytest.approx(16 / 8)


def test_the_least_limit_counts_and_unknown_memory_is_left_out():
    runs = [
        made(8, 0, peak_bytes=100, limit_bytes=1000),
        made(8, 1, peak_bytes=300, limit_bytes=900),
        made(8, 2),
    ]
    found = figures_of(runs)
    assert found.peak_bytes == Spread(200.0, 100, 300, 2)
    assert found.limit_bytes == 900


def test_a_spread_takes_what_is_known():
    assert Spread.of([None, float("nan"), float("inf")]) is None
    assert Spread.of([3.0, None, 1.0]) == Spread(2.0, 1.0, 3.0, 2)


@pytest.mark.parametrize(
    ("one", "other", "do"),
    [((1, 3), (3, 4), True), ((1, 2), (3, 4), False), ((1, 9), (3, 4), True)],
)
def test_bands_overlap_if_they_have_a_place_in_common(one, other, do):
    a, b = Spread(1, *one, 3), Spread(1, *other, 3)
    assert a.overlaps(b) is do
    assert b.overlaps(a) is do
