"""A scripted source under supervision: fails in every way, comes back, delays no other one."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

import numpy as np
import pytest
from films import PATIENCE, wait_for
from hypothesis import given
from hypothesis import strategies as st
from scripted_sources import Scripted, Start, Step, Taker, hangs, opens, picture, raises, scripted

from rightbatch._serve.sources.feed import Feed, FeedStatus, pause_after
from rightbatch._serve.sources.frames import (
    DamagedFrameError,
    Frame,
    FrameSource,
    SourceSpec,
    SourceStopped,
    Timeouts,
)
from rightbatch.testing import FrameSourceContract


class Clock:
    """What a feed takes for the time; `looks` are counted by the thread's name."""

    def __init__(self) -> None:
        self.now = 100.0
        self.looks: Counter[str] = Counter()

    def monotonic(self) -> float:
        self.looks[threading.current_thread().name] += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("rightbatch._serve.sources.feed.time", clock)
    return clock


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


class TestAScriptedSource(FrameSourceContract):
    @pytest.fixture
    def source(self) -> FrameSource:
        return Scripted(False, [opens, picture(1), picture(2), picture(3)])


def test_frames_are_numbered_in_order_over_all_connections(feeds: Start, taker: Taker) -> None:
    first = [opens, picture(1), picture(2), raises(OSError("cable"))]
    second = [opens, picture(3), raises(OSError("cable"))]
    third = [opens, picture(4)]
    feed = feeds(scripted(first, second, third), taker)
    wait_for(lambda: len(taker.frames) == 4)
    assert taker.numbers == [0, 1, 2, 3]
    assert taker.values == [1, 2, 3, 4]
    assert feed.status().reconnects == 2
    assert feed.status().frames == 4


def test_a_live_source_that_ends_is_connected_to_again(feeds: Start, taker: Taker) -> None:
    feed = feeds(scripted([opens, picture(1)], [opens, picture(2)]), taker, on_end=taker.end)
    wait_for(lambda: feed.status().error == "nothing more")
    assert taker.values == [1, 2]
    assert taker.ended == 0


def test_a_source_that_is_absent_at_start_is_retried_and_visible(
    feeds: Start, taker: Taker
) -> None:
    absent = threading.Event()

    def open_if_there() -> None:
        if not absent.is_set():
            raise OSError(113, "No route to host")

    leaving = threading.Event()
    scripts = [[open_if_there, picture(1), hangs(leaving)] for _ in range(10_000)]
    feed = feeds(scripted(*scripts), taker, stall_after=60.0)
    wait_for(lambda: feed.status().error == "No route to host")
    assert feed.status().state in ("waiting", "connecting")
    assert feed.status().frames == 0
    absent.set()
    wait_for(lambda: feed.status().state == "running")
    status = feed.status()
    assert status.error is None
    assert status.reconnects == 0
    assert status.size == (8, 4)
    assert status.last_frame_age is not None
    feed.stop(0)
    leaving.set()


def test_a_source_that_stalls_is_given_up_and_what_it_brings_later_does_not_count(
    feeds: Start, taker: Taker
) -> None:
    woken, waking = threading.Event(), threading.Event()

    def hang() -> np.ndarray:
        waking.wait()
        woken.set()
        return np.full((4, 8, 3), 99, np.uint8)

    # One frame each: a machine that is slow between two of them would be a stall as well.
    second = [opens, picture(2), hangs(waking)]
    feed = feeds(
        scripted([opens, picture(1), hang], second, [opens, picture(3)]),
        taker,
        stall_after=0.2,
    )
    wait_for(lambda: len(taker.frames) >= 2, "for the second connection")
    waking.set()
    assert woken.wait(PATIENCE)
    wait_for(lambda: feed.status().error == "nothing more")
    feed.stop(PATIENCE)
    wait_for(lambda: not readers(), "for the first connection to hand over what it has")
    assert taker.values == [1, 2, 3]
    assert taker.numbers == [0, 1, 2]


def test_a_connection_that_hangs_while_it_opens_is_given_up(feeds: Start, taker: Taker) -> None:
    waking = threading.Event()
    others = [[opens, picture(1), hangs(waking)] for _ in range(1000)]
    feed = feeds(scripted([hangs(waking)], *others), taker, open_timeout=0.1, stall_after=0.2)
    wait_for(lambda: taker.values[:1] == [1])
    waking.set()
    feed.stop(PATIENCE)


def test_what_a_stalled_source_lacks_is_said(feeds: Start, taker: Taker) -> None:
    waking = threading.Event()
    spec = scripted([opens, picture(1), hangs(waking)])
    feed = feeds(spec, taker, stall_after=0.2, first_retry=1000.0, last_retry=1000.0)
    wait_for(lambda: taker.frames)
    wait_for(lambda: feed.status().state == "waiting")
    assert feed.status().error == "no frame for 0.2 s"
    waking.set()


def test_a_source_that_stalls_delays_no_other_one(feeds: Start, taker: Taker) -> None:
    waking = threading.Event()
    stuck = [feeds(scripted([opens, hangs(waking)]), Taker()) for _ in range(4)]
    scripts = [opens, *(picture(n) for n in range(50)), hangs(waking)]
    feeds(scripted(scripts), taker)
    wait_for(lambda: len(taker.frames) == 50)
    assert all(feed.status().frames == 0 for feed in stuck)
    waking.set()


def test_a_frame_that_is_broken_is_counted_and_what_follows_comes(
    feeds: Start, taker: Taker
) -> None:
    broken = raises(DamagedFrameError("rain"))
    spec = scripted([opens, picture(1), broken, picture(2), broken], is_live=False)
    feed = feeds(spec, taker, on_end=taker.end)
    wait_for(lambda: taker.ended)
    assert taker.values == [1, 2]
    assert taker.numbers == [0, 2]
    assert feed.status().broken == 2
    assert feed.status().error == "rain"


def test_a_camera_that_sends_only_broken_frames_is_connected_to_again(
    feeds: Start, taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rightbatch._serve.sources.feed._FIRST_FRAME", 0.1)
    leaving, started, connections = threading.Event(), list[Feed](), itertools.count()

    def rain() -> None:
        time.sleep(0.01)
        raise DamagedFrameError("rain")

    def make(timeouts: Timeouts) -> FrameSource:
        """It rains on the first connection, and until two broken frames were counted."""
        dry = next(connections) > 0 and started and started[0].status().broken > 1
        steps: list[Step] = [picture(1), hangs(leaving)] if dry else 100_000 * [rain]
        return Scripted(True, [opens, *steps])

    spec = SourceSpec("scripted", "scripted:", True, make)
    started.append(feeds(spec, taker, stall_after=0.2))
    wait_for(lambda: taker.frames, "for a connection after the rain")
    leaving.set()
    assert taker.values[0] == 1
    assert started[0].status().broken > 1


def test_what_is_not_live_ends_once(feeds: Start, taker: Taker) -> None:
    spec = scripted([opens, picture(1)], [opens, picture(2)], is_live=False)
    feed = feeds(spec, taker, on_end=taker.end)
    wait_for(lambda: taker.ended)
    assert feed.status().state == "ended"
    assert feed.status().error is None
    feed.stop()
    assert feed.status().state == "ended"
    assert taker.values == [1]
    assert taker.ended == 1


def test_what_is_not_live_and_breaks_has_failed_and_is_not_retried(
    feeds: Start, taker: Taker
) -> None:
    spec = scripted(
        [opens, picture(1), raises(ValueError("scratched"))], [opens, picture(2)], is_live=False
    )
    feed = feeds(spec, taker, on_end=taker.end)
    wait_for(lambda: taker.ended)
    assert (feed.status().state, feed.status().error) == ("failed", "scratched")
    assert taker.values == [1]


@pytest.mark.parametrize("is_live", [True, False])
def test_who_takes_frames_slowly_is_waited_for_and_the_source_has_not_stalled(
    feeds: Start, taker: Taker, clock: Clock, is_live: bool
) -> None:
    gate = threading.Event()

    def deliver(frame: Frame) -> None:
        taker(frame)
        assert gate.wait(PATIENCE)

    spec = scripted([opens, picture(1), picture(2)], is_live=is_live)
    feed = feeds(spec, deliver, stall_after=0.05)
    wait_for(lambda: taker.values == [1])
    clock.now += 1000
    if is_live:  # the watcher has seen what time it is
        looks = clock.looks["feed scripted"]
        wait_for(lambda: clock.looks["feed scripted"] > looks + 4)
    assert feed.status().state == "running"
    gate.set()
    wait_for(lambda: taker.values == [1, 2])


def test_a_server_that_closes_stops_it(feeds: Start, taker: Taker) -> None:
    def deliver(frame: Frame) -> None:
        raise SourceStopped

    feed = feeds(scripted(2 * [opens, picture(1)]), deliver, on_end=taker.end)
    wait_for(lambda: feed.status().state == "stopped")
    assert taker.ended == 0


def test_it_stops_while_it_waits_to_try_again(feeds: Start, taker: Taker) -> None:
    feed = feeds(scripted(), taker, first_retry=1000.0, last_retry=1000.0)
    wait_for(lambda: feed.status().state == "waiting")
    began = time.monotonic()
    feed.stop()
    assert time.monotonic() - began < PATIENCE  # the pause is 1000 s
    assert feed.status().state == "stopped"


def test_it_stops_from_within_what_it_delivers(feeds: Start, taker: Taker) -> None:
    box: list[Feed] = []

    def deliver(frame: Frame) -> None:
        taker(frame)
        wait_for(lambda: box)
        box[0].stop()

    feed = feeds(scripted([opens, picture(1), picture(2)]), deliver)
    box.append(feed)
    wait_for(lambda: feed.status().state == "stopped")
    assert taker.values == [1]


def test_one_that_was_never_started_can_be_stopped(taker: Taker) -> None:
    feed = Feed(scripted(), taker)
    assert feed.status() == FeedStatus("connecting")
    feed.stop()
    assert feed.status().state == "stopped"


@pytest.mark.parametrize("count", [100, 400])  # within the seconds that count, and more
def test_the_rate_is_that_of_the_frames(
    feeds: Start, taker: Taker, clock: Clock, count: int
) -> None:
    leaving = threading.Event()

    def paced() -> np.ndarray:
        clock.now += 0.02
        return np.zeros((4, 8, 3), np.uint8)

    feed = feeds(scripted([opens, *(count * [paced]), hangs(leaving)]), taker)
    wait_for(lambda: len(taker.frames) == count)
    assert feed.status().frames_per_second == pytest.approx(50, rel=0.02)
    clock.now += 10
    assert feed.status().frames_per_second == 0
    leaving.set()


@given(
    failures=st.integers(1, 10_000),
    first=st.floats(0.01, 5.0),
    last=st.floats(0.01, 60.0),
    chance=st.floats(0.0, 1.0, exclude_max=True),
)
def test_pauses_double_up_to_the_last_one_and_differ_by_chance(
    failures: int, first: float, last: float, chance: float
) -> None:
    longest = min(last, first * 2.0 ** (failures - 1)) if failures < 100 else last
    pause = pause_after(failures, first, last, chance)
    assert longest / 2 <= pause <= longest
    assert pause_after(failures, first, last, 0.0) == longest / 2
