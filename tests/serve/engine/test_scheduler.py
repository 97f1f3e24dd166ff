"""What goes now: sizes against a search over all of them, drops, caps, and predictions kept."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import line_table, scheduler_on_a_line

from rightbatch._serve.engine.queues import NEVER, Item
from rightbatch._serve.engine.scheduler import Scheduler
from rightbatch._serve.engine.service_times import ServiceTable

A, B, LATENCY = 1e-3, 4e-3, 0.033  # two batches of 12 take 32 ms
FAST = settings(derandomize=True, max_examples=150)


def scheduler(**options):
    return scheduler_on_a_line(A, B, LATENCY, **options)


def fill(scheduler, count, at=0.0, stream="requests"):
    if stream not in scheduler.queues:
        scheduler.open(stream)
    for number in range(count):
        scheduler.put(Item(stream, number, at, NEVER))


def taken(scheduler, now):
    dispatch, dropped = scheduler.next(now)
    assert dispatch is not None
    return [item.payload for item in dispatch.items], [item.payload for item, _ in dropped]


@pytest.mark.parametrize("waiting", [1, 2, 5, 12, 13, 40])
def test_all_that_waits_goes_at_once_up_to_the_most_that_the_target_allows(waiting):
    chosen = scheduler()
    fill(chosen, waiting)
    items, dropped = taken(chosen, 0.0)
    assert items == list(range(min(waiting, 12)))
    assert dropped == []


@FAST
@given(st.floats(1e-4, 0.02), st.floats(1e-4, 0.02), st.floats(0.005, 0.5))
def test_the_largest_batch_is_the_largest_of_which_two_fit_into_the_target(a, b, latency):
    chosen = scheduler_on_a_line(a, b, latency, largest=256)
    within = [n for n in range(1, 257) if 2 * (a * n + b) <= latency] or [1]
    # Where the time per batch hardly counts any more, a larger one is not worth it.
    least = within[-1] / (a * within[-1] + b) / 1.02
    assert chosen.largest <= within[-1]
    assert chosen.rate() >= least


def test_nothing_waits_nothing_goes():
    chosen = scheduler()
    assert chosen.next(0.0) == (None, [])
    fill(chosen, 3, at=0.0)
    dispatch, dropped = chosen.next(1.0)
    assert dispatch is None
    assert [(item.payload, cause) for item, cause in dropped] == [
        (0, "late"),
        (1, "late"),
        (2, "late"),
    ]


def test_a_head_that_would_be_late_is_dropped_and_the_batch_stays_large():
    chosen = scheduler()
    fill(chosen, 1, at=0.0)
    fill(chosen, 20, at=0.015)
    # At 20 ms a batch of 12 is ready at 36 ms, and the first was due at 33: it would have been
    # saved by a batch of 9.
    items, dropped = taken(chosen, 0.020)
    assert dropped == [0]
    assert items == list(range(12))


def test_a_head_that_is_just_in_time_is_kept():
    chosen = scheduler()
    fill(chosen, 30, at=0.0)
    items, dropped = taken(chosen, LATENCY - (A * 12 + B) - 1e-9)
    assert dropped == []
    assert len(items) == 12


@FAST
@given(
    st.lists(st.floats(0, 0.05), min_size=1, max_size=40),
    st.floats(0, 0.06),
    st.integers(1, 3),
)
def test_what_goes_is_in_time_what_is_dropped_would_not_have_been_and_none_idles(ages, now, many):
    chosen = scheduler()
    for name in range(many):
        chosen.open(str(name))
    for number, at in enumerate(sorted(ages)):
        chosen.put(Item(str(number % many), number, min(at, now), NEVER))
    dispatch, dropped = chosen.next(now)
    if dispatch is None:
        assert len(dropped) == len(ages)
        return
    finish = now + A * len(dispatch.items) + B
    assert all(finish <= item.deadline for item in dispatch.items)
    # Late even in a batch of those that were left with it.
    kept = len(ages) - len(dropped)
    assert all(now + A * min(kept + 1, 12) + B > item.deadline for item, _ in dropped)
    assert len(dispatch.items) == min(kept, 12)


def test_a_target_that_not_even_one_item_meets_still_serves_those_that_find_it_free():
    chosen = scheduler_on_a_line(A, 20e-3, 0.03)
    fill(chosen, 3)
    assert chosen.largest == 1
    assert taken(chosen, 0.0) == ([0], [])


@pytest.mark.parametrize("cap", [1, 3, 8])
def test_caps_count_items(cap):
    chosen = scheduler(max_batch=cap)
    fill(chosen, 30)
    assert len(taken(chosen, 0.0)[0]) == cap
    capped = scheduler()
    capped.limit_batch(cap)
    fill(capped, 30)
    assert len(taken(capped, 0.0)[0]) == cap


def test_no_batch_is_larger_than_what_was_measured():
    chosen = Scheduler(line_table(A, B, 4), 1.0)
    fill(chosen, 30)
    assert len(taken(chosen, 0.0)[0]) == 4


@pytest.mark.parametrize(
    ("waiting", "ran_as"), [(1, 2), (2, 2), (4, 6), (6, 6), (10, 12), (40, 12)]
)
def test_batches_are_padded_to_the_sizes_that_the_model_takes(waiting, ran_as):
    chosen = scheduler(sizes=[12, 2, 6])
    fill(chosen, waiting)
    dispatch, _ = chosen.next(0.0)
    assert dispatch is not None
    assert dispatch.ran_as == ran_as
    assert len(dispatch.items) == min(waiting, ran_as)
    assert dispatch.seconds == pytest.approx(A * ran_as + B)


@FAST
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(1e-3, 0.05), min_size=4, max_size=4),
    st.integers(1, 60),
)
def test_a_batch_serves_most_a_second_of_all_that_were_possible(sizes, taken_seconds, waiting):
    sizes = sorted(sizes)
    seconds = dict(zip(sizes, taken_seconds, strict=False))
    chosen = Scheduler(ServiceTable({size: [seconds[size]] for size in sizes}), 1.0, sizes=sizes)
    fill(chosen, waiting)
    dispatch, _ = chosen.next(0.0)
    assert dispatch is not None

    def rate(size):
        padded = next((allowed for allowed in sizes if allowed >= size), sizes[-1])
        return size / seconds[padded]

    best = max(rate(size) for size in range(1, min(waiting, sizes[-1]) + 1))
    # Half a per cent for each doubling is not worth a larger batch.
    assert rate(len(dispatch.items)) >= best / 1.005 ** math.log2(2 * sizes[-1])


def test_where_batching_gains_nothing_items_go_one_by_one():
    chosen = Scheduler(ServiceTable({1: [1e-3], 2: [2e-3], 4: [4.01e-3], 8: [7.99e-3]}), 1.0)
    fill(chosen, 20)
    dispatch, _ = chosen.next(0.0)
    assert dispatch is not None
    assert len(dispatch.items) == 1
    assert dispatch.reason == "larger batches do not serve more items per second"


def test_a_large_batch_leaves_none_behind_for_a_small_gain():
    # Each item more makes a batch of 100 hardly better, and waits for a whole one otherwise.
    chosen = scheduler_on_a_line(A, B, 1.0)
    for waiting in range(1, 300):
        fill(chosen, waiting)
        assert len(taken(chosen, 0.0)[0]) == waiting


def test_what_has_no_deadline_makes_nobody_late():
    chosen = scheduler()
    chosen.open("file", "every", depth=30)
    fill(chosen, 1, at=0.0)
    fill(chosen, 30, at=0.0, stream="file")
    # A batch of 12 would end at 36 ms. The camera's own ends at 25 ms.
    dispatch, dropped = chosen.next(0.020)
    assert dispatch is not None
    assert [item.stream for item in dispatch.items] == ["requests"]
    assert dropped == []
    assert dispatch.reason == "all waiting items"
    dispatch, _ = chosen.next(0.025)
    assert dispatch is not None
    assert [item.stream for item in dispatch.items] == ["file"] * 12


def test_in_overload_a_file_still_has_its_small_share():
    chosen = scheduler()
    chosen.open("file", "every", weight=0.1, depth=24)
    chosen.open("camera")
    now, served = 0.0, {"file": 0, "camera": 0}
    for _ in range(400):
        while not chosen.queues["file"].is_full:
            chosen.put(Item("file", None, now, NEVER))
        for place in range(26):  # of 16 ms: 1.6 times what it can serve
            chosen.put(Item("camera", None, now - 0.016 + 0.016 * place / 26, NEVER))
        dispatch, _ = chosen.next(now)
        assert dispatch is not None
        for item in dispatch.items:
            served[item.stream] += 1
        now += dispatch.seconds
    assert served["file"] / served["camera"] == pytest.approx(0.1, rel=0.1)


def test_order_within_a_stream_outlives_drops():
    chosen = scheduler()
    chosen.open("one")
    chosen.open("two")
    for number in range(40):
        stream = "one" if number % 3 else "two"
        chosen.put(Item(stream, number, 0.001 * number, NEVER))
    now, seen = 0.04, {"one": [], "two": []}
    while True:
        dispatch, _ = chosen.next(now)
        if dispatch is None:
            break
        for item in dispatch.items:
            seen[item.stream].append(item.payload)
        now += dispatch.seconds
    assert all(numbers and numbers == sorted(numbers) for numbers in seen.values())


def run_until_empty(scheduler, now):
    """When each item was ready."""
    ready = {}
    while True:
        dispatch, _ = scheduler.next(now)
        if dispatch is None:
            return ready
        now += dispatch.seconds
        for item in dispatch.items:
            ready[item.payload] = now


@pytest.mark.parametrize("waiting", [0, 1, 5, 12, 20, 31, 60])
@pytest.mark.parametrize("busy", [0.0, 0.005, 0.016])
def test_predicted_lateness_is_how_late_it_would_have_been(waiting, busy):
    def filled():
        # Those that wait are patient, so that none of them makes room by being dropped.
        patient = scheduler_on_a_line(A, B, LATENCY)
        patient.open("requests")
        for number in range(waiting):
            patient.queues.put(Item("requests", number, 0.0, 1e9))
        return patient

    predicted = filled().lateness("requests", 0.0, busy, 0.0)
    asked = filled()
    asked.queues.put(Item("requests", "mine", 0.0, 1e9))
    true = run_until_empty(asked, busy)["mine"] - LATENCY
    assert predicted == pytest.approx(max(0.0, true), abs=1e-9)


@pytest.mark.parametrize("waiting", [20, 31, 60])
def test_after_retry_after_there_is_room_and_before_there_is_not(waiting):
    late = 0.0
    for share in (0.0, 0.9, 1.0 + 1e-9):
        chosen = scheduler()
        chosen.open("requests")
        for number in range(waiting):
            chosen.queues.put(Item("requests", number, 0.0, 1e9))
        free, now = 0.005, 0.0
        late = late or chosen.lateness("requests", now, free, now)
        assert late > 0
        now = share * late
        while free <= now and len(chosen.queues):
            dispatch, _ = chosen.next(free)
            assert dispatch is not None
            free += dispatch.seconds
        again = chosen.lateness("requests", now, free, now)
        assert (again > 0) == (share < 1)


def test_an_item_that_took_time_to_come_has_less_left():
    chosen = scheduler()
    chosen.open("requests")
    assert chosen.lateness("requests", 1.0, 0.0, 1.0 - 0.027) == 0.0
    assert chosen.lateness("requests", 1.0, 0.0, 1.0 - 0.029) == pytest.approx(0.001)


def test_time_before_the_queue_is_not_counted_twice():
    chosen = scheduler()
    chosen.open("requests")
    chosen.overhead = 0.02
    assert chosen.lateness("requests", 1.0, 0.0, 1.0 - 0.02) == 0.0


def test_time_before_the_queue_makes_batches_smaller():
    chosen = scheduler()
    chosen.overhead = 0.009
    chosen.plan()
    assert chosen.largest == 8  # 2 (8 + 4) + 9 = 33 ms


@pytest.mark.parametrize(
    ("options", "waiting", "reason"),
    [
        ({}, 3, "all waiting items"),
        ({}, 40, "limited by the latency target of 33 ms"),
        ({"max_batch": 4}, 40, "limited by max_batch or memory"),
        ({"sizes": [1, 8]}, 40, "the model's largest batch size"),
        ({"sizes": [4, 8]}, 7, "all waiting items"),
    ],
)
def test_a_batch_says_why_it_has_its_size(options, waiting, reason):
    chosen = scheduler(**options)
    fill(chosen, waiting)
    dispatch, _ = chosen.next(0.0)
    assert dispatch is not None
    assert dispatch.reason == reason


def test_a_part_is_left_where_padding_would_cost_more_than_it_serves():
    chosen = Scheduler(ServiceTable({4: [4e-3], 8: [8e-3]}), 1.0, sizes=[4, 8])
    fill(chosen, 5)
    dispatch, _ = chosen.next(0.0)
    assert dispatch is not None
    assert len(dispatch.items) == 4
    assert dispatch.reason == "most items per second of the waiting ones"


def test_what_serves_is_observed_and_the_sizes_follow():
    chosen = scheduler()
    for _ in range(64):
        chosen.observe(12, 2 * (A * 12 + B))
    assert chosen.largest == 4  # 2 x 2 (4 + 4) = 32 ms


def test_a_table_that_is_adopted_counts_at_once():
    chosen = scheduler()
    chosen.use_table(line_table(2 * A, 2 * B))
    assert chosen.largest == 4


def test_depths_follow_the_contract_and_the_largest_batch():
    chosen = scheduler()
    chosen.open("file", "every")
    chosen.open("camera", "freshest")
    chosen.open("requests", "deadline")
    chosen.open("narrow", "every", depth=3)
    depths = {stream.name: stream.depth for stream in chosen.queues}
    assert depths == {"file": 24, "camera": 1, "requests": None, "narrow": 3}
    chosen.limit_batch(5)
    assert chosen.queues["file"].depth == 10
    assert chosen.queues["narrow"].depth == 3


@pytest.mark.parametrize("latency", [0.0125, 0.02, 0.05])
def test_a_batch_of_the_only_size_is_filled_even_where_two_do_not_fit_into_the_target(latency):
    chosen = scheduler_on_a_line(A, B, latency, sizes=[8])  # 12 ms, whatever is in it
    assert chosen.largest == 8
    fill(chosen, 8)
    assert len(taken(chosen, 0.0)[0]) == 8
