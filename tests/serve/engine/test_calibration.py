"""Calibration: on a machine whose clock is virtual, so that what must be found is known."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from servers import scheduler_on_a_line

from rightbatch._serve.engine import calibration as calibrate
from rightbatch._serve.engine.calibration import estimate_capacity, measure
from rightbatch._serve.engine.service_times import ServiceTable
from rightbatch._serve.engine.virtual_clock import cameras, poisson, simulate


class Machine:
    """Runs batches in the seconds that it is told, and remembers their sizes."""

    def __init__(self, seconds, memory=None, hiccups=()):
        self.now, self.sizes = 0.0, []
        self._seconds, self._memory, self._hiccups = seconds, memory, set(hiccups)

    def __call__(self, items):
        size = len(items)
        self.sizes.append(size)
        if self._memory is not None and size > self._memory:
            raise MemoryError
        slow = 20 if len(self.sizes) in self._hiccups else 1
        self.now += slow * self._seconds(size)
        return [f"result of {item}" for item in items]

    def perf_counter(self):
        return self.now


def measured(monkeypatch, machine, latency, **options):
    monkeypatch.setattr(calibrate, "time", SimpleNamespace(perf_counter=machine.perf_counter))
    options.setdefault("is_out_of_memory", lambda error: isinstance(error, MemoryError))
    return measure(machine, "item", latency, **options)


def line(size):
    return 1e-3 * size + 4e-3


REASONS = [
    # what the machine is like, what is asked, why it stops, the sizes that ran, the sentence
    ({}, {}, "latency", [1, 2, 4, 8, 16], "two larger batches take more than 33 ms"),
    ({"memory": 7}, {}, "memory", [1, 2, 4], "a larger batch ran out of memory"),
    ({}, {"sizes": [2, 6]}, "sizes", [2, 6], "the model accepts no larger batch"),
    ({}, {"max_batch": 6}, "max_batch", [1, 2, 4, 6], "limited by max_batch"),
    ({}, {"max_batch": 1}, "max_batch", [1], "limited by max_batch"),
    (
        {"seconds": lambda n: 1e-3 * max(n, 2)},
        {},
        "no gain",
        [1, 2, 4, 8],
        "do not serve more items per second",
    ),
    (
        {"seconds": lambda n: 1e-9 * n + 1e-6},
        {},
        "largest",
        None,
        "batches above 1024 were not measured",
    ),
    ({"seconds": lambda n: 1e-3 * n}, {}, "no gain", [1, 2, 4], "within the target"),
    ({"seconds": lambda n: 0.02 * n}, {}, "latency", [1], "one item takes 20 ms and two take more"),
]


@pytest.mark.parametrize(("machine", "options", "stopped_by", "sizes", "sentence"), REASONS)
def test_it_stops_for_a_reason_and_says_it(
    monkeypatch, machine, options, stopped_by, sizes, sentence
):
    machine = Machine(**{"seconds": line} | machine)
    samples, why = measured(monkeypatch, machine, 0.033, **options)
    assert why == stopped_by
    assert list(samples) == (sizes or [2**k for k in range(11)])
    for size, taken in samples.items():
        assert taken == pytest.approx([machine._seconds(size)] * len(taken))
        assert 3 <= len(taken) <= 9
    found = estimate_capacity(samples, why, 0.033, **options)
    assert sentence in found.reason
    assert sentence in str(found)


def test_a_cap_above_what_is_tried_is_not_said_to_have_been_reached(monkeypatch):
    machine = Machine(lambda n: 1e-9 * n + 1e-6)
    samples, why = measured(monkeypatch, machine, 0.033, max_batch=5000)
    assert (max(samples), why) == (1024, "largest")


def test_the_first_batch_of_a_size_is_not_counted(monkeypatch):
    machine = Machine(line, hiccups={1})
    samples, _ = measured(monkeypatch, machine, 0.033)
    assert max(samples[1]) == pytest.approx(line(1))


def test_long_batches_are_repeated_less_often(monkeypatch):
    machine = Machine(lambda n: 0.3)
    samples, _ = measured(monkeypatch, machine, 100.0, max_batch=2)
    assert [len(taken) for taken in samples.values()] == [3, 3]


def test_one_hiccup_neither_ends_it_nor_makes_batches_small(monkeypatch):
    machine = Machine(line, hiccups={3})
    samples, why = measured(monkeypatch, machine, 0.033)
    assert list(samples) == [1, 2, 4, 8, 16]
    assert estimate_capacity(samples, why, 0.033).largest_batch == 12


def test_what_is_not_memory_is_raised(monkeypatch):
    def function(items):
        raise RuntimeError("the model is broken")

    with pytest.raises(RuntimeError, match="the model is broken"):
        measure(function, "item", 0.1)


def test_a_smallest_batch_without_memory_is_raised(monkeypatch):
    with pytest.raises(MemoryError):
        measured(monkeypatch, Machine(line, memory=0), 0.033)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda items: None, r"a list with one result per item \(1\), got NoneType"),
        (lambda items: [], r"returned 0 result\(s\) for 1 item"),
        (lambda items: (item for item in items), "got generator"),
        (lambda items: items[:1], r"returned 1 result\(s\) for 2 item"),
    ],
)
def test_results_that_are_wrong_in_number_are_named(function, message):
    with pytest.raises(TypeError, match=message):
        measure(function, "item", 0.1)


def test_progress_names_the_sizes(monkeypatch):
    shown = []
    measured(monkeypatch, Machine(line), 0.033, max_batch=4, show=shown.append)
    assert shown == ["batches of 1", "batches of 2", "batches of 4"]


@pytest.fixture(scope="module")
def found():
    samples = {size: [line(size)] * 3 for size in (1, 2, 4, 8, 16)}
    return estimate_capacity(samples, "latency", 0.033, camera_rate=30)


def test_what_is_promised_is_what_a_load_bears(found):
    assert found.largest_batch == 12
    assert found.items_per_second == pytest.approx(750)
    assert found.one_by_one == pytest.approx(200)

    def attained(arrivals):
        return simulate(scheduler_on_a_line(1e-3, 4e-3, 0.033), arrivals).attainment

    # With other arrivals than those it was found with.
    assert attained(poisson(0.95 * found.requests_per_second, 60, seed=5)) >= 0.99
    assert attained(poisson(1.05 * found.requests_per_second, 60, seed=5)) < 0.99
    assert attained(cameras(found.cameras - 1, 30, 30, seed=5)) >= 0.985
    assert attained(cameras(found.cameras + 1, 30, 30, seed=5)) < 0.99


def test_it_is_said_in_one_line_and_in_json(found):
    assert str(found) == (
        f"batches up to 12; 750 frames/s instead of 200 one by one; {found.cameras} cameras at "
        f"30 frames/s fit, or {found.requests_per_second:.3g} requests/s "
        "(two larger batches take more than 33 ms)"
    )
    document = json.loads(json.dumps(found.to_dict()))
    assert document["largest_batch"] == 12
    assert document["latency_target_ms"] == pytest.approx(33)
    assert document["seconds"]["16"] == pytest.approx([0.02] * 3)
    assert document["text"] == str(found)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (
            0.06,
            "no camera at 10 frames/s fits, or 0 requests/s (one item takes 60 ms, longer",
        ),
        (0.04, "25 frames/s; 1 camera at 10 frames/s fits, or"),
    ],
)
def test_few_cameras_are_said_in_words(seconds, text):
    assert text in str(estimate_capacity({1: [seconds]}, "latency", 0.05))


def test_the_table_of_a_calibration_serves_the_scheduler(monkeypatch):
    samples, _ = measured(monkeypatch, Machine(line), 0.033)
    assert ServiceTable(samples).line() == pytest.approx((1e-3, 4e-3))


def test_a_target_of_minutes_is_concluded_in_a_moment_and_promises_no_more_than_capacity():
    samples = {size: [1e-4 * size + 1e-4] for size in (1, 2, 4, 8)}
    found = estimate_capacity(samples, "max_batch", 600.0, max_batch=8)
    most = 8 / 9e-4
    assert found.requests_per_second == pytest.approx(most, rel=0.02)
    assert found.requests_per_second <= most
    assert found.cameras == 500


def test_a_larger_batch_that_fails_for_another_reason_than_memory_ends_the_search():
    def picky(items):
        if len(items) > 2:
            raise ValueError("reshape")
        return list(items)

    samples, stopped_by = measure(picky, 0, 10.0)
    assert (sorted(samples), stopped_by) == ([1, 2], "failure")
    assert (
        "a larger batch failed" in estimate_capacity({1: [0.01], 2: [0.012]}, "failure", 0.1).reason
    )


def test_a_model_of_one_size_says_that_it_takes_no_larger_one():
    samples, stopped_by = measure(list, 0, 10.0, sizes=[1])
    assert (
        "the model accepts no larger batch"
        in estimate_capacity(samples, stopped_by, 10.0, sizes=[1]).reason
    )
