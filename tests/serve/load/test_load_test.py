"""The load generator: latencies from the schedule, its own lag, the search for the largest rate."""

from __future__ import annotations

import itertools
import threading
import time
from fractions import Fraction
from math import comb, log
from types import SimpleNamespace

import pytest
from films import PATIENCE

from rightbatch._errors import LateError, UsageError
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.records import Served
from rightbatch._serve.load.arrivals import schedule
from rightbatch._serve.load.early_stopping import queries_needed
from rightbatch._serve.load.load_test import LoadResult, run
from rightbatch._serve.load.rate_search import largest_rate


class Answers:
    """Answers at once; `think` is called with every item before."""

    def __init__(self, think=lambda item: None, latency=10.0):
        self.think, self.latency, self.items = think, latency, []

    def put(self, stream, item, done, arrived=None):
        self.items.append((stream, item, arrived))
        try:
            self.think(item)
        except ValueError as error:
            done(error)
            return
        done(Served(item, 1, 0.0, True, "stub"))


def every(period, count):
    return [(number * period, "stream") for number in range(count)]


def test_a_latency_counts_from_the_scheduled_moment_and_not_from_when_it_was_sent():
    # Each is answered 20 ms after the one before, but scheduled 5 ms after it: number k comes
    # 20 (k + 1) - 5 k ms late, however fast the one that is asked thinks it was.
    result = run(Answers(lambda item: time.sleep(0.02)), ["item"], every(0.005, 10))
    for number, latency in enumerate(result.latencies):
        assert latency >= 0.02 * (number + 1) - 0.005 * number - 0.001


def test_a_generator_that_is_late_itself_is_said_so():
    slow = run(Answers(lambda item: time.sleep(0.02), latency=0.1), ["item"], every(0.005, 10))
    assert slow.lag >= 0.02 * 9 - 0.005 * 9 - 0.02
    assert slow.lags
    assert "the load generator lagged by up to" in str(slow)
    quick = run(Answers(latency=100.0), ["item"], every(0.005, 10))
    assert not quick.lags
    assert "generator lagged" not in str(quick)


def test_items_are_taken_in_turn_each_with_its_stream_and_moment():
    asked = Answers()
    run(asked, ["a", "b"], [(0.0, "x"), (0.001, "y"), (0.003, "x")])
    assert [(stream, item) for stream, item, _ in asked.items] == [
        ("x", "a"),
        ("y", "b"),
        ("x", "a"),
    ]
    first = asked.items[0][2]
    moments = [arrived - first for _, _, arrived in asked.items]
    # The clock may count from long ago, and its numbers be coarse.
    assert moments == pytest.approx([0, 0.001, 0.003], abs=1e-6)


def test_what_is_refused_dropped_or_fails_is_counted_by_its_cause_and_not_in_time():
    def think(item):
        if item in ("late", "refused"):
            raise LateError("", cause=item)
        if item == "fails":
            raise ValueError

    result = run(Answers(think), ["late", "fine", "refused", "fails"], every(0.001, 8))
    assert result.dropped == {"late": 2, "refused": 2, "failed": 2}
    assert (result.offered, result.in_time, result.attainment) == (8, 2, 0.25)
    assert "2 late" in str(result)


def test_what_is_never_answered_is_counted():
    class Silent(Answers):
        def put(self, stream, item, done, arrived=None):
            pass

    result = run(Silent(latency=0.001), ["item"], every(0.001, 3))
    assert result.dropped == {"unanswered": 3}
    assert result.attainment == 0
    assert result.quantile(0.5) is None


def test_it_stops_once_the_share_cannot_be_reached_any_more():
    asked = Answers(latency=1e-9)  # nothing is that quick
    result = run(asked, ["item"], every(0.001, 500), share=0.99)
    assert result.offered == len(asked.items) == 6  # five of 500 may be late
    assert result.was_stopped
    assert not result.holds()
    assert "stopped after 6 of 500" in str(result)
    assert run(Answers(latency=1e-9), ["item"], every(0.0, 50)).offered == 50


def test_a_share_that_is_just_reached_does_not_stop_it(monkeypatch):
    # 1 - 0.9 is a little less than 0.1 for a computer: one of ten may be late all the same.
    now = 100.0

    def sleep(seconds):
        nonlocal now
        now += seconds

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr("rightbatch._serve.load.load_test.time", clock)
    late_once = Answers(lambda item: sleep(0.1 if item == "slow" else 0), latency=0.05)
    items = ["slow", *["quick"] * 9]
    result = run(late_once, items, every(0.15, 10), share=0.9)
    assert (result.offered, result.in_time) == (10, 9)
    assert result.holds(0.9)


def test_a_backlog_is_waited_for_as_long_as_answers_come():
    class Slow(Answers):
        """Answers what it was given one by one, later, for longer than it may be silent."""

        def put(self, stream, item, done, arrived=None):
            self.items.append(done)
            if len(self.items) == 30:
                threading.Thread(target=self.answer).start()

        def answer(self):
            for done in self.items:
                time.sleep(0.2)
                done(Served(None, 1, 0.0, True, "stub"))

    # It may be silent for 4 s, which is more than this machine is slow, and takes 6 s.
    result = run(Slow(latency=0.3), ["item"], every(0.0001, 30))
    assert result.dropped == {}
    assert len(result.latencies) == 30
    assert max(result.latencies) > 5.9


def test_rates_are_what_was_offered_and_what_was_in_time():
    result = LoadResult(0.1, 2.0, 10, 10, {"late": 1}, 0.0, [0.05] * 6 + [0.2] * 3)
    assert (result.rate, result.goodput, result.attainment) == (5, 3, 0.6)
    told = result.to_dict()
    assert told["latency_ms"]["p50"] == pytest.approx(50)
    assert told["offered_per_second"] == 5


def test_a_real_batcher_under_a_load_answers_all_of_it():
    def function(items):
        time.sleep(0.001)
        return [2 * item for item in items]

    with Batcher(function, latency=10.0, max_batch=4, calibrate_on=1) as batcher:  # all in time
        arrivals = schedule("cameras", 200, 0.3)
        result = run(batcher, [1, 2, 3], arrivals)
        assert batcher.close(PATIENCE) == 0  # a batch is counted after its results have gone
        told = batcher.counters.total()
    assert result.dropped == {}
    assert result.offered == len(arrivals) == len(result.latencies)
    assert all(latency >= 0.001 for latency in result.latencies)
    assert told["served"] == told["in_time"] == result.in_time == len(arrivals)


@pytest.mark.parametrize("kind", ["poisson", "cameras"])
def test_a_schedule_is_the_same_for_a_seed_and_another_for_another(kind):
    first = schedule(kind, 200, 5, seed=3)
    assert first == schedule(kind, 200, 5, seed=3)
    assert first != schedule(kind, 200, 5, seed=4)
    assert all(0 <= at < 5 for at, _ in first)
    assert [at for at, _ in first] == sorted(at for at, _ in first)
    assert len(first) == pytest.approx(1000, rel=0.1)


def test_a_poisson_schedule_has_its_rate_and_exponential_intervals():
    moments = [at for at, _ in schedule("poisson", 500, 20)]
    assert len(moments) == 500 * 20
    between = [later - at for at, later in itertools.pairwise(moments)]
    for quantile in (0.25, 0.5, 0.9, 0.99):
        expected = -log(1 - quantile) / 500
        assert sorted(between)[int(quantile * len(between))] == pytest.approx(expected, rel=0.1)


def test_the_rate_of_cameras_is_their_number_times_their_rate():
    arrivals = schedule("cameras", 70, 2, per=10)
    assert {stream for _, stream in arrivals} == {f"camera{number}" for number in range(7)}


@pytest.mark.parametrize("rate", [3, 14, 16, 205])
def test_a_rate_that_is_no_number_of_whole_cameras_is_met_all_the_same(rate):
    arrivals = schedule("cameras", rate, 100, per=10)
    assert len(arrivals) == pytest.approx(100 * rate, rel=0.01)
    assert len({stream for _, stream in arrivals}) == max(1, round(rate / 10))


def test_the_counts_of_early_stopping_are_mlperfs_and_those_of_the_exact_binomial():
    assert queries_needed(0) == 459
    for late in (0, 1, 2, 5):
        needed = queries_needed(late)
        late_or_fewer = [
            sum(
                comb(trials, k) * Fraction(1, 100) ** k * Fraction(99, 100) ** (trials - k)
                for k in range(late + 1)
            )
            for trials in (needed - 1, needed)
        ]
        assert late_or_fewer[0] > Fraction(1, 100) >= late_or_fewer[1]


def test_it_is_sure_only_with_enough_items():
    held = LoadResult(0.1, 1.0, 458, 458, {}, 0.0, [0.0] * 458)
    assert held.holds()
    assert not held.is_sure()
    assert LoadResult(0.1, 1.0, 459, 459, {}, 0.0, [0.0] * 459).is_sure()


def bears(limit, limit_of_others=None):
    """An attempt that holds up to a limit; another one for schedules of other seeds."""
    asked = []

    def attempt(rate, seed):
        asked.append(rate)
        bearable = limit if seed == 0 or limit_of_others is None else limit_of_others
        late = 0 if rate <= bearable else 500
        return LoadResult(0.1, 10.0, 1000, 1000, {}, 0.0, [0.01] * (1000 - late))

    return attempt, asked


@pytest.mark.parametrize("guess", [1, 90, 333, 470, 5000])
@pytest.mark.parametrize("limit", [14, 200, 467.5, 900])
def test_the_search_finds_the_largest_rate_in_steps_from_any_guess(limit, guess):
    attempt, asked = bears(limit)
    found = largest_rate(attempt, guess, 10)
    assert found.rate == limit // 10 * 10
    assert len(asked) == len(found.runs) <= 20
    assert found.last is found.runs[-1][1]
    assert found.to_dict()["items_per_second"] == found.rate


def test_a_good_guess_needs_few_runs():
    attempt, asked = bears(450)
    largest_rate(attempt, 440, 10)
    assert len(asked) <= 6


def test_a_rate_that_held_by_luck_is_taken_back():
    attempt, asked = bears(450, limit_of_others=420)
    assert largest_rate(attempt, 440, 10).rate == 420
    assert len(asked) <= 14


def test_a_rate_below_one_that_held_by_luck_has_to_hold_twice_too():
    # 440 holds for the first arrivals, by luck: 430 does not, though it does for the others.
    asked = []

    def attempt(rate, seed):
        asked.append((rate, seed))
        holds = rate <= 420 or (rate == 440 and seed == 0) or (rate == 430 and seed == 1)
        return LoadResult(0.1, 10.0, 1000, 1000, {}, 0.0, [0.01] * (1000 if holds else 500))

    found = largest_rate(attempt, 440, 10)
    assert found.rate == 420
    assert {(420, 0), (420, 1), (430, 0)} <= set(asked)
    assert len(set(asked)) == len(asked)  # none is run twice


def test_where_the_generator_gives_out_first_it_says_so():
    def attempt(rate, seed):
        lag = 0.05 if rate > 450 else 0.0
        late = 500 if rate > 450 else 0
        return LoadResult(0.1, 10.0, 1000, 1000, {}, lag, [0.01] * (1000 - late))

    found = largest_rate(attempt, 440, 10)
    assert found.rate == 450
    assert found.is_generators
    assert "the server may sustain more" in str(found)
    assert not largest_rate(bears(450)[0], 440, 10).is_generators


def test_where_nothing_holds_it_says_so():
    found = largest_rate(bears(5)[0], 100, 10)
    assert found.rate == 0
    assert found.last is None
    assert "was found" in str(found)


def test_what_was_found_says_when_it_is_not_sure():
    attempt, _ = bears(100)
    assert "confidence" not in str(largest_rate(attempt, 100, 10))

    def short(rate, seed):
        late = 0 if rate <= 100 else 50
        return LoadResult(0.1, 1.0, 100, 100, {}, 0.0, [0.01] * (100 - late))

    found = largest_rate(short, 100, 10)
    assert "99% confidence needs 459" in str(found)
    assert not found.to_dict()["is_sure"]


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(UsageError, match="poisson or cameras"):
        schedule("bursts", 10, 1)
    with pytest.raises(UsageError, match="at least one"):
        run(Answers(), [], every(1, 1))
    with pytest.raises(UsageError, match="above 0"):
        largest_rate(bears(1)[0], 0, 1)
    with pytest.raises(UsageError, match="above 0"):
        schedule("poisson", 0, 1)
    for share in (0, 1, 99):
        with pytest.raises(UsageError, match="between 0 and 1"):
            largest_rate(bears(1)[0], 1, 1, share=share)
        with pytest.raises(UsageError, match="between 0 and 1"):
            queries_needed(0, share)
