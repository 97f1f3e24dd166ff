"""A source in a process of its own: the same frames, and a process that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import films
import numpy as np
import pytest
from films import Camera, encode, film, places, process_ids, shows, wait_for

from rightbatch._errors import UsageError
from rightbatch._serve.sources.feed import Feed
from rightbatch._serve.sources.frames import DamagedFrameError, Frame, SourceSpec, Timeouts
from rightbatch._serve.sources.isolated import IsolatedSource
from rightbatch._serve.sources.open import open_source
from rightbatch.testing import FrameSourceContract


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = process_ids()
    yield
    wait_for(lambda: process_ids() <= before, "for processes to end")


@pytest.fixture(scope="module")
def film_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("films") / "parts.mp4"
    encode(path, film())
    return path


def isolated(source: object) -> IsolatedSource:
    return IsolatedSource(open_source(source), Timeouts())  # type: ignore[arg-type]


class TestAnIsolatedFile(FrameSourceContract):
    frames = 30

    @pytest.fixture
    def source(self, film_file: Path) -> Iterator[IsolatedSource]:
        source = isolated(film_file)
        yield source
        source.close()


class Hanging:
    """A camera whose driver hangs, with Python's lock, after a frame."""

    is_live = True

    def __init__(self, timeouts: Timeouts) -> None:
        self._frames = 0

    def open(self) -> None: ...

    def read(self) -> tuple[np.ndarray, float]:
        self._frames += 1
        if self._frames > 1:
            import ctypes

            ctypes.PyDLL(None).sleep(1000)
        return np.full((4, 8, 3), self._frames, np.uint8), time.monotonic()

    def close(self) -> None: ...


def test_it_brings_the_frames_that_a_thread_brings(film_file: Path) -> None:
    here, there = open_source(film_file).make(Timeouts()), isolated(film_file)
    here.open()
    there.open()
    while (expected := here.read()) is not None:
        found = there.read()
        assert found is not None
        assert np.array_equal(found[0], expected[0])
        assert found[0].flags.writeable
    assert there.read() is None
    here.close()
    there.close()


def test_a_broken_frame_and_a_broken_source_are_what_they_are_in_a_thread(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"garbage")
    source = isolated(tmp_path)
    source.open()
    for name in ("a.png", "b.png"):
        with pytest.raises(DamagedFrameError, match=name):
            source.read()
    assert source.read() is None
    source.close()

    (tmp_path / "parts.mp4").write_bytes(b"garbage")
    source = isolated(tmp_path / "parts.mp4")
    with pytest.raises(OSError, match="Invalid data"):
        source.open()


def test_an_iterable_of_arrays_is_sent_to_its_process_and_a_generator_is_refused() -> None:
    images = [np.full((4, 8, 3), number, np.uint8) for number in range(3)]
    source = isolated(images)
    source.open()
    assert [source.read()[0][0, 0, 0] for _ in images] == [0, 1, 2]  # type: ignore[index]
    source.close()
    with pytest.raises(UsageError, match=r"cannot be pickled.*isolated=False"):
        Feed(open_source(image for image in images), print, isolated=True)


@pytest.mark.skipif(os.name != "posix", reason="PyDLL(None) is not known there")
def test_a_source_that_hangs_with_pythons_lock_is_killed_and_started_again() -> None:
    frames: list[Frame] = []
    spec = SourceSpec("hanging", "hanging:", True, Hanging)
    # A process may start slowly; only once it has begun must it bring frames.
    options = {"open_timeout": films.PATIENCE, "stall_after": 0.3, "first_retry": 0.01}
    feed = Feed(spec, frames.append, isolated=True, **options)  # type: ignore[arg-type]
    feed.start()
    try:
        wait_for(lambda: len(frames) >= 2)
    finally:
        feed.stop(films.PATIENCE)
    assert [frame.number for frame in frames[:2]] == [0, 1]
    # The first frame of two processes; one process would have brought a 2.
    assert [int(frame.image[0, 0, 0]) for frame in frames[:2]] == [1, 1]
    assert feed.status().reconnects >= 1


@pytest.mark.skipif(os.name != "posix", reason="signals differ")
def test_a_process_that_dies_is_said_to_have_died_and_started_again() -> None:
    frames: list[Frame] = []
    is_there = threading.Event()
    is_there.set()

    def show(caller: socket.socket, closing: threading.Event) -> None:
        is_there.wait(films.PATIENCE)
        shows(films.pieces(), then=films.is_mute)(caller, closing)

    with Camera(show) as camera:
        before = process_ids()
        options = {"stall_after": 600.0, "first_retry": 0.5, "open_timeout": films.PATIENCE}
        feed = Feed(open_source(camera.url), frames.append, isolated=True, **options)  # type: ignore[arg-type]
        feed.start()
        try:
            wait_for(lambda: len(frames) > 5)
            [reader] = process_ids() - before
            is_there.clear()  # so that the error stays until it was seen
            os.kill(reader, signal.SIGSEGV)
            wait_for(lambda: "ended with status -11" in str(feed.status().error))
            is_there.set()
            wait_for(lambda: feed.status().reconnects == 1)
        finally:
            is_there.set()
            feed.stop(films.PATIENCE)
    assert [frame.number for frame in frames] == list(range(len(frames)))
    assert -1 not in places([frame.image for frame in frames], film())


def test_closing_kills_a_process_that_is_mute_at_once() -> None:
    with Camera(shows(films.pieces(), then=films.is_mute)) as camera:
        source = IsolatedSource(open_source(camera.url), Timeouts(read=1000.0))
        source.open()
        source.read()
        reader = threading.Thread(target=_drain, args=(source,))
        reader.start()
        began = time.monotonic()
        source.close()
        reader.join()
        assert time.monotonic() - began < films.PATIENCE


def _drain(source: IsolatedSource) -> None:
    try:
        while source.read() is not None:
            pass
    except (OSError, ValueError):
        pass


def test_its_process_ends_with_a_parent_that_is_killed(film_file: Path, tmp_path: Path) -> None:
    """And a script needs no `__main__` guard."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, sys, time
        from rightbatch._serve.sources.feed import Feed
        from rightbatch._serve.sources.open import open_source
        print("started", flush=True)
        def deliver(frame):
            print("frame", flush=True)
            time.sleep(1000)
        feed = Feed(open_source({str(film_file)!r}), deliver, isolated=True)
        feed.start()
        time.sleep(1000)
        """)
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"started\n"
        assert parent.stdout.readline() == b"frame\n"
        import psutil

        [child] = psutil.Process(parent.pid).children()
        parent.kill()

        def has_ended() -> bool:
            try:
                return child.status() == psutil.STATUS_ZOMBIE  # nobody may wait for it
            except psutil.NoSuchProcess:
                return True

        wait_for(has_ended)
        assert b"started" not in parent.stdout.read()
