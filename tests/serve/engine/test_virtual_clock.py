"""The scheduler on the virtual clock, against the figures that its policy was chosen by."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from servers import GOALS, greedy, line_table, scheduler_on_a_line

from rightbatch._serve.engine.scheduler import Scheduler
from rightbatch._serve.engine.virtual_clock import cameras, poisson, simulate
from rightbatch.testing._queueing import capacity

VIDEO = 30.0  # frames a second of a camera, or nearly
ITEMS = 12_000


def video_cameras(rate, seed=0, items=ITEMS):
    """As many cameras of usual video as make that rate."""
    count = max(1, round(rate / VIDEO))
    return cameras(count, rate / count, items / rate, seed)


@pytest.mark.parametrize(("a", "b", "latency", "rate", "_"), GOALS)
def test_cameras_at_the_goal_are_in_time(a, b, latency, rate, _):
    for seed in range(3):
        scheduler = scheduler_on_a_line(a, b, latency)
        served = simulate(scheduler, video_cameras(rate, seed))
        assert served.attainment >= 0.99


@pytest.mark.parametrize(("a", "b", "latency", "_", "rate"), GOALS)
def test_requests_at_the_goal_are_in_time(a, b, latency, _, rate):
    scheduler = scheduler_on_a_line(a, b, latency)
    served = simulate(scheduler, poisson(rate, 3 * ITEMS / rate))
    assert served.attainment >= 0.99


@pytest.mark.parametrize(("a", "b", "latency"), [row[:3] for row in GOALS])
@pytest.mark.parametrize("load", [poisson, video_cameras])
def test_overload_keeps_what_capacity_gives(a, b, latency, load):
    scheduler = scheduler_on_a_line(a, b, latency)
    most = capacity(a, b, scheduler.largest)
    seconds = ITEMS / most
    arrivals = (
        poisson(1.6 * most, seconds)
        if load is poisson
        else video_cameras(1.6 * most, items=1.6 * ITEMS)
    )
    served = simulate(scheduler, arrivals)
    assert served.in_time >= 0.95 * most * seconds


def test_refusing_what_is_predicted_late_keeps_it_as_well():
    a, b, latency, *_ = GOALS[0]
    scheduler = scheduler_on_a_line(a, b, latency)
    most = capacity(a, b, scheduler.largest)
    served = simulate(scheduler, poisson(1.6 * most, ITEMS / most), refuse=True)
    assert served.in_time >= 0.95 * ITEMS
    assert served.dropped["refused"] > 0


@pytest.mark.parametrize("refuse", [False, True])
def test_with_a_known_service_time_nothing_is_served_late(refuse):
    for load in (0.5, 0.9, 1.6):
        scheduler = scheduler_on_a_line(1e-3, 4e-3, 0.033)
        served = simulate(scheduler, poisson(750 * load, 10), refuse=refuse)
        assert max(served.latencies) <= 0.033 + 1e-9
        assert served.in_time + sum(served.dropped.values()) == served.offered


def test_where_the_target_is_longer_than_a_period_fresher_frames_take_the_places():
    scheduler = scheduler_on_a_line(1e-3, 4e-3, 0.1)
    most = capacity(1e-3, 4e-3, scheduler.largest)
    served = simulate(scheduler, video_cameras(1.6 * most), contract="freshest")
    assert served.dropped["replaced"] > 0
    assert served.in_time >= 0.95 * served.offered / 1.6


def test_without_a_target_it_is_the_server_of_the_closed_forms():
    arrivals = poisson(700, 20)
    scheduler = scheduler_on_a_line(1e-3, 4e-3, math.inf, max_batch=200)
    served = simulate(scheduler, arrivals)
    expected = greedy([at for at, _ in arrivals], lambda size: 1e-3 * size + 4e-3, 200)
    assert sorted(served.latencies) == pytest.approx(sorted(expected))
    assert served.dropped == {}


def test_a_level_that_doubles_is_followed_to_the_capacity_it_leaves():
    scheduler = scheduler_on_a_line(1e-3, 4e-3, 0.033)
    clock = Counter()

    def seconds(size):
        clock["batches"] += 1
        slow = 2 if clock["batches"] > 100 else 1
        return slow * (1e-3 * size + 4e-3)

    arrivals = poisson(180, 60)
    served = simulate(scheduler, arrivals, seconds=seconds, learn=True)
    # Twice as slow it can serve 4 in 16 ms; another that had always known is hardly better.
    assert scheduler.table.level == pytest.approx(2.0, rel=0.02)
    assert scheduler.largest == 4
    knew = simulate(scheduler_on_a_line(2e-3, 8e-3, 0.033), arrivals)
    assert served.attainment >= knew.attainment - 0.005


def test_a_table_that_was_twice_too_slow_is_put_right():
    wrong = Scheduler(line_table(2e-3, 8e-3), 0.033)
    served = simulate(wrong, poisson(600, 30), seconds=lambda size: 1e-3 * size + 4e-3, learn=True)
    assert wrong.largest == 12
    assert served.attainment >= 0.98


def test_poisson_arrivals_have_their_rate_and_no_memory():
    moments = [at for at, _ in poisson(500, 100)]
    assert moments == sorted(moments)
    assert len(moments) == pytest.approx(50_000, rel=0.02)
    gaps = [later - before for before, later in itertools.pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), rel=0.03)


def test_cameras_keep_their_period_and_differ_in_phase():
    arrivals = cameras(5, 20, 10, jitter=0)
    assert arrivals == sorted(arrivals)
    first = {}
    for at, camera in arrivals:
        number = first.setdefault(camera, []).append(at)
        assert number is None
    assert len(first) == 5
    assert len({moments[0] for moments in first.values()}) == 5
    for moments in first.values():
        assert len(moments) == 200
        for frame, at in enumerate(moments):
            assert at == pytest.approx(moments[0] + frame / 20)


def test_the_same_seed_is_the_same_load_and_another_is_not():
    assert poisson(100, 5, seed=3) == poisson(100, 5, seed=3) != poisson(100, 5, seed=4)
    assert cameras(3, 10, 2, seed=3) == cameras(3, 10, 2, seed=3) != cameras(3, 10, 2, seed=4)


def test_nothing_offered_is_all_in_time():
    assert simulate(scheduler_on_a_line(1e-3, 4e-3, 0.1), []).attainment == 1.0
