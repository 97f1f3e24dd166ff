"""Feeds of real films and cameras, which are cut off, fail and come back."""

from __future__ import annotations

import re
import socket
import threading
from pathlib import Path
from typing import Any

import films
import pytest
from films import PATIENCE, Camera, encode, film, places, shows, wait_for
from scripted_sources import Start, Taker

from rightbatch._serve.sources.frames import FrameSource, SourceSpec, Timeouts
from rightbatch._serve.sources.open import open_source


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

    def was_said() -> bool:
        return any(re.search(said, error) for error in errors)

    def fails(caller: socket.socket, closing: threading.Event) -> None:
        """Fails at the end of the film until that was seen, however often it takes."""
        (films.is_mute if was_said() else fault)(caller, closing)

    with (
        Camera(shows(films.pieces(), then=fails)) as bad,
        Camera(shows(*(9 * [films.pieces()]), then=films.is_mute, pace=0.015)) as good,
    ):
        watched = feeds(open_source(good.url), other)
        feed = feeds(open_source(bad.url), taker, isolated=isolated, stall_after=1.0)

        def is_back() -> bool:
            if (error := feed.status().error) is not None:
                errors.add(error)
            is_over = feed.status().reconnects > 0 and len(taker.frames) > 50
            return was_said() and is_over

        wait_for(is_back, "for the camera to fail and to come back")
        wait_for(lambda: len(other.frames) > 60)
        feed.stop(PATIENCE)
        watched.stop(PATIENCE)
    assert was_said(), errors
    frames = list(taker.frames)
    assert [frame.number for frame in frames] == list(range(len(frames)))
    seen = places([frame.image for frame in frames], film())
    assert -1 not in seen, "a frame that the camera never took"
    other_seen = places([frame.image for frame in list(other.frames)], film())
    assert other_seen == [number % len(film()) for number in range(len(other_seen))]


def test_a_camera_that_changes_its_resolution_goes_on(feeds: Start, taker: Taker) -> None:
    smaller = films.pieces(size=films.SMALLER)
    with Camera(shows(films.pieces(), smaller, then=films.is_mute)) as camera:
        feed = feeds(open_source(camera.url), taker)
        wait_for(lambda: feed.status().size == films.SMALLER)
        wait_for(lambda: len(taker.frames) > 60)
        feed.stop(PATIENCE)
    sizes = [frame.image.shape for frame in taker.frames]
    assert set(sizes) == {(96, 160, 3), (64, 128, 3)}


def test_a_camera_that_is_absent_at_start_is_found_when_it_comes(
    feeds: Start, taker: Taker
) -> None:
    with films.reserved_port() as port:
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

        feed = feeds(SourceSpec("camera", "rtsp://", True, make), taker)
        wait_for(lambda: len(taker.frames) > 10)
        made[-1].close()  # as when the cable is drawn
        wait_for(lambda: feed.status().reconnects > 0)
        count = len(taker.frames)
        wait_for(lambda: len(taker.frames) > count + 10)
        feed.stop(PATIENCE)
    assert taker.numbers == list(range(len(taker.frames)))
    assert -1 not in places([frame.image for frame in taker.frames], film())
