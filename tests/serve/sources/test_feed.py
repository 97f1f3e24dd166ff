"""A source under supervision: fails in every way, comes back, and delays no other one."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest
from films import PATIENCE, Camera, encode, film, places, shows, wait_for
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._serve.sources.feed import Feed, FeedStatus, pause_after
from rightbatch._serve.sources.frames import (
    DamagedFrameError,
    Frame,
    FrameSource,
    SourceSpec,
    SourceStopped,
    Timeouts,
)
from rightbatch._serve.sources.open import open_source
from rightbatch.testing import FrameSourceContract

QUICK: dict[str, Any] = {
    "open_timeout": 2.0,
    "stall_after": 1.0,
    "first_retry": 0.02,
    "last_retry": 0.05,
}

Step = Callable[[], np.ndarray | None]


class Scripted:
    """A connection that does one step of a script for each read; its first one opens it."""

    def __init__(self, is_live: bool, steps: list[Step]) -> None:
        self.is_live = is_live
        self._steps = iter(steps)
        self.closed = False

    def open(self) -> None:
        next(self._steps)()

    def read(self) -> tuple[np.ndarray, float] | None:
        if self.closed:
            raise ValueError("it is closed")
        image = next(self._steps, lambda: None)()
        return None if image is None else (image, time.monotonic())

    def close(self) -> None:
        self.closed = True


def picture(value: int = 0, size: tuple[int, int] = (8, 4)) -> Step:
    return lambda: np.full((size[1], size[0], 3), value, np.uint8)


def opens() -> None:
    return None


def raises(error: Exception) -> Step:
    def step() -> None:
        raise error

    return step


def hangs(until: threading.Event) -> Step:
    def step() -> None:
        until.wait(PATIENCE)

    return step


class TestAScriptedSource(FrameSourceContract):
    @pytest.fixture
    def source(self) -> FrameSource:
        return Scripted(False, [opens, picture(1), picture(2), picture(3)])


def scripted(*connections: list[Step], is_live: bool = True) -> SourceSpec:
    """A source whose connections follow scripts; there are no more of them."""
    left = iter(connections)

    def make(timeouts: Timeouts) -> FrameSource:
        steps = next(left, [raises(OSError("nothing more"))])
        return Scripted(is_live, steps)

    return SourceSpec("scripted", "scripted:", is_live, make)


class Taker:
    """Keeps what it is delivered."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.ended = 0

    def __call__(self, frame: Frame) -> None:
        self.frames.append(frame)

    def end(self) -> None:
        self.ended += 1

    @property
    def numbers(self) -> list[int]:
        return [frame.number for frame in self.frames]

    @property
    def values(self) -> list[int]:
        return [int(frame.image[0, 0, 0]) for frame in self.frames]


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
def feeds() -> Iterator[Callable[..., Feed]]:
    """Starts feeds, and sees to it that nothing of them is left."""
    before = set(threading.enumerate())
    started: list[Feed] = []

    def start(spec: SourceSpec, deliver: Callable[[Frame], None], **options: Any) -> Feed:
        feed = Feed(spec, deliver, **QUICK | options)
        started.append(feed)
        feed.start()
        return feed

    yield start
    for feed in started:
        feed.stop(0)
    for feed in started:
        feed.stop()
        assert feed.status().state in ("stopped", "ended", "failed")
    wait_for(lambda: set(threading.enumerate()) <= before, "for threads to end")


Start = Callable[..., Feed]


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

    second = [opens, picture(2), picture(3), hangs(waking)]
    feed = feeds(
        scripted([opens, picture(1), hang], second, [opens, picture(4)]),
        taker,
        stall_after=0.2,
    )
    wait_for(lambda: len(taker.frames) == 3, "for the second connection")
    waking.set()
    assert woken.wait(PATIENCE)
    wait_for(lambda: feed.status().error == "nothing more")
    assert taker.values == [1, 2, 3, 4]
    assert taker.numbers == [0, 1, 2, 3]


def test_a_connection_that_hangs_while_it_opens_is_given_up(feeds: Start, taker: Taker) -> None:
    waking = threading.Event()
    spec = scripted([hangs(waking)], [opens, picture(1), hangs(waking)])
    feed = feeds(spec, taker, open_timeout=0.1, stall_after=0.2)
    wait_for(lambda: taker.values == [1])
    waking.set()
    feed.stop()


def test_what_a_stalled_source_lacks_is_said(feeds: Start, taker: Taker) -> None:
    waking = threading.Event()
    spec = scripted([opens, picture(1), hangs(waking)])
    feed = feeds(spec, taker, stall_after=0.2, first_retry=60.0, last_retry=60.0)
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

    def rain() -> None:
        time.sleep(0.01)
        raise DamagedFrameError("rain")

    first: list[Step] = [opens, *(100_000 * [rain])]
    feed = feeds(scripted(first, [opens, picture(1)]), taker, stall_after=0.2)
    wait_for(lambda: taker.values == [1])
    assert feed.status().broken > 1


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


def test_who_takes_frames_slowly_is_waited_for_and_the_source_has_not_stalled(
    feeds: Start, taker: Taker
) -> None:
    gate = threading.Event()

    def deliver(frame: Frame) -> None:
        taker(frame)
        gate.wait()

    for is_live in (True, False):
        spec = scripted([opens, picture(1), picture(2)], is_live=is_live)
        feed = feeds(spec, deliver, stall_after=0.05)
        wait_for(lambda: taker.values == [1])
        time.sleep(0.3)
        assert feed.status().state == "running"
        gate.set()
        wait_for(lambda: taker.values == [1, 2])
        taker.frames.clear()
        gate.clear()
        feed.stop(0)


def test_a_server_that_closes_stops_it(feeds: Start, taker: Taker) -> None:
    def deliver(frame: Frame) -> None:
        raise SourceStopped

    feed = feeds(scripted(2 * [opens, picture(1)]), deliver, on_end=taker.end)
    wait_for(lambda: feed.status().state == "stopped")
    assert taker.ended == 0


def test_it_stops_while_it_waits_to_try_again(feeds: Start, taker: Taker) -> None:
    feed = feeds(scripted(), taker, first_retry=100.0, last_retry=100.0)
    wait_for(lambda: feed.status().state == "waiting")
    began = time.monotonic()
    feed.stop()
    assert time.monotonic() - began < PATIENCE  # the pause is 100 s
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


def test_the_rate_is_that_of_the_frames(feeds: Start, taker: Taker) -> None:
    def paced() -> np.ndarray:
        time.sleep(0.02)
        return np.zeros((4, 8, 3), np.uint8)

    feed = feeds(scripted([opens, *(100 * [paced])]), taker)
    wait_for(lambda: len(taker.frames) > 60)
    spent = taker.frames[60].captured - taker.frames[0].captured
    assert feed.status().frames_per_second == pytest.approx(60 / spent, rel=0.3)


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


# Real things from here on.


def test_a_film_is_brought_whole_and_ends(feeds: Start, taker: Taker, tmp_path: Path) -> None:
    encode(tmp_path / "parts.mp4", film())
    feed = feeds(open_source(tmp_path / "parts.mp4"), taker, on_end=taker.end)
    wait_for(lambda: taker.ended)
    assert feed.status().state == "ended"
    assert places([frame.image for frame in taker.frames], film()) == list(range(len(film())))
    assert taker.numbers == list(range(len(film())))


def test_a_film_that_was_cut_off_has_failed_after_the_frames_before(
    feeds: Start, taker: Taker, tmp_path: Path
) -> None:
    encode(tmp_path / "parts.mp4", film())
    data = (tmp_path / "parts.mp4").read_bytes()
    (tmp_path / "parts.mp4").write_bytes(data[: len(data) // 2])
    feed = feeds(open_source(tmp_path / "parts.mp4"), taker, on_end=taker.end)
    wait_for(lambda: taker.ended)
    assert (feed.status().state, feed.status().error) == ("failed", "the file is truncated")
    seen = places([frame.image for frame in taker.frames], film())
    assert seen == list(range(len(seen)))
    assert len(seen) > 5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (films.hangs_up, "Input/output error|End of file|Connection reset|the stream ended"),
        (films.is_mute, "nothing came for|no frame for"),
        (films.sends_garbage, "damaged|no frame for|nothing came for"),
    ],
)
@pytest.mark.parametrize("isolated", [False, True])
def test_a_camera_that_fails_in_the_middle_comes_back_and_the_other_loses_nothing(
    feeds: Start, taker: Taker, fault: films.Behaviour, said: str, isolated: bool
) -> None:
    other = Taker()
    errors: set[str] = set()
    with (
        Camera(shows(films.pieces(), then=fault), shows(films.pieces(), then=films.is_mute)) as bad,
        Camera(shows(*(9 * [films.pieces()]), then=films.is_mute, pace=0.015)) as good,
    ):
        feeds(open_source(good.url), other, stall_after=60.0)
        feed = feeds(open_source(bad.url), taker, isolated=isolated)

        def is_back() -> bool:
            if (error := feed.status().error) is not None:
                errors.add(error)
            return feed.status().reconnects > 0 and len(taker.frames) > 50

        wait_for(is_back, f"after {errors}")
        wait_for(lambda: len(other.frames) > 60)
        feed.stop(0)
    assert any(re.search(said, error) for error in errors), errors
    assert taker.numbers == list(range(len(taker.frames)))
    seen = places([frame.image for frame in taker.frames], film())
    assert -1 not in seen, "a frame that the camera never took"
    other_seen = places([frame.image for frame in other.frames], film())
    assert other_seen == [number % len(film()) for number in range(len(other_seen))]


def test_a_camera_that_changes_its_resolution_goes_on(feeds: Start, taker: Taker) -> None:
    smaller = films.pieces(size=films.SMALLER)
    with Camera(shows(films.pieces(), smaller, then=films.is_mute)) as camera:
        feed = feeds(open_source(camera.url), taker, stall_after=60.0)
        wait_for(lambda: feed.status().size == films.SMALLER)
        wait_for(lambda: len(taker.frames) > 60)
        feed.stop(0)
    sizes = [frame.image.shape for frame in taker.frames]
    assert set(sizes) == {(96, 160, 3), (64, 128, 3)}


def test_a_camera_that_is_absent_at_start_is_found_when_it_comes(
    feeds: Start, taker: Taker
) -> None:
    port = films.free_port()
    feed = feeds(open_source(f"http://me:S3cret@127.0.0.1:{port}/live"), taker)
    wait_for(lambda: feed.status().error)
    assert feed.status().error == "Connection refused"
    with Camera(shows(films.pieces(), then=films.is_mute), port=port):
        wait_for(lambda: len(taker.frames) > 5)
        feed.stop(0)


@pytest.mark.parametrize("isolated", [False, True])
def test_no_password_is_shown_whatever_fails(feeds: Start, taker: Taker, isolated: bool) -> None:
    shown = []
    for behaviour in (films.is_mute, films.sends_garbage, films.hangs_up):
        with Camera(behaviour) as camera:
            for scheme in ("rtsp", "http"):
                url = camera.url.replace("http://", f"{scheme}://me:S3cret@")
                feed = feeds(open_source(url), taker, open_timeout=0.2, isolated=isolated)
                wait_for(lambda feed=feed: feed.status().error)  # type: ignore[misc]
                shown.append(f"{feed.name} {feed.spec} {feed.status()}")
                feed.stop(0)
    assert "S3cret" not in " ".join(shown)


def test_an_rtsp_camera_is_read_and_read_again(feeds: Start, taker: Taker) -> None:
    from test_video import rtsp_listener

    with films.rtsp_camera() as port:
        made: list[Any] = []

        def make(timeouts: Timeouts) -> FrameSource:
            made.append(rtsp_listener(port, timeouts))
            return made[-1]  # type: ignore[no-any-return]

        feed = feeds(SourceSpec("camera", "rtsp://", True, make), taker, open_timeout=10.0)
        wait_for(lambda: len(taker.frames) > 10)
        made[0].close()  # as when the cable is drawn
        wait_for(lambda: feed.status().reconnects == 1)
        count = len(taker.frames)
        wait_for(lambda: len(taker.frames) > count + 10)
        feed.stop()
    assert taker.numbers == list(range(len(taker.frames)))
    assert -1 not in places([frame.image for frame in taker.frames], film())
