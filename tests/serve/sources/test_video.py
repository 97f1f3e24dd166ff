"""Frames of video files and of cameras, against films of which every frame is known."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import films
import numpy as np
import pytest
from films import Camera, encode, film, places, shows

from rightbatch._errors import UsageError
from rightbatch._serve.sources import video
from rightbatch._serve.sources.frames import DamagedFrameError, FrameSource, Timeouts
from rightbatch._serve.sources.open import open_source
from rightbatch._serve.sources.video import VideoSource, WebcamSource, _webcam
from rightbatch.testing import FrameSourceContract

PATIENT = Timeouts(open=films.PATIENCE, read=films.PATIENCE)


def _made(source: str | Path, timeouts: Timeouts = PATIENT) -> FrameSource:
    return open_source(source).make(timeouts)


def _all(source: FrameSource) -> list[np.ndarray]:
    """Its images, and what it raises at the end."""
    images: list[np.ndarray] = []
    _into(images, source)
    return images


def _into(images: list[np.ndarray], source: FrameSource) -> None:
    try:
        source.open()
        while (found := source.read()) is not None:
            images.append(found[0])
    finally:
        source.close()


@pytest.fixture
def film_file(tmp_path: Path) -> Path:
    encode(tmp_path / "parts.mp4", film())
    return tmp_path / "parts.mp4"


class TestAFile(FrameSourceContract):
    frames = 30

    @pytest.fixture
    def source(self, film_file: Path) -> Iterator[FrameSource]:
        source = _made(film_file)
        yield source
        source.close()


class TestALiveStreamOverHttp(FrameSourceContract):
    frames = 10

    @pytest.fixture
    def source(self) -> Iterator[FrameSource]:
        with Camera(shows(films.pieces(), then=films.is_mute)) as camera:
            source = _made(camera.url)
            yield source
            source.close()


class TestAnRtspCamera(FrameSourceContract):
    frames = 10

    @pytest.fixture
    def source(self, rtsp_port: int) -> Iterator[FrameSource]:
        source = rtsp_listener(rtsp_port)
        yield source
        source.close()


@pytest.fixture(scope="module")
def rtsp_port() -> Iterator[int]:
    with films.rtsp_camera() as port:
        yield port


def rtsp_listener(port: int, timeouts: Timeouts = PATIENT) -> VideoSource:
    """PyAV is no RTSP server, but it can wait for a camera to call."""
    options = {"rtsp_flags": "listen", "listen_timeout": "60"}
    url = f"rtsp://127.0.0.1:{port}/film"
    return VideoSource(url, True, timeouts, container="rtsp", options=options)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize("reordered", ["0", "3"])
def test_a_file_brings_every_frame_once_and_in_order(
    tmp_path: Path, suffix: str, reordered: str
) -> None:
    path = tmp_path / f"parts.{suffix}"
    encode(path, film(), bf=reordered, tune="film", preset="fast")
    assert places(_all(_made(path)), film()) == list(range(len(film())))


def test_a_camera_brings_every_frame_once_and_in_order(rtsp_port: int) -> None:
    source = rtsp_listener(rtsp_port)
    source.open()
    seen: list[np.ndarray] = []
    while len(seen) < 2 * len(film()):
        found = source.read()
        assert found is not None
        seen.append(found[0])
    source.close()
    assert places(seen, film()) == 2 * list(range(len(film())))


def test_frames_that_a_decoder_held_back_carry_the_time_of_their_own_packet() -> None:
    frames = film()
    file = films._Pieces()
    encode(file, frames, container="mpegts", bf="3", tune="film", preset="fast")
    with Camera(shows(file.pieces, then=films.is_mute, pace=0.05)) as camera:
        source = _made(camera.url)
        source.open()
        times, delays = [], []
        for _ in range(len(frames) - 6):  # those that the decoder gives while the stream goes on
            found = source.read()
            assert found is not None
            times.append(found[1])
            delays.append(time.monotonic() - found[1])
        source.close()
    # A frame that others refer to comes before them, and is shown behind them.
    assert times != sorted(times)
    assert max(delays) > 0.04


def test_a_change_of_resolution_in_the_middle_changes_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "parts.ts"
    path.write_bytes(b"".join(films.pieces() + films.pieces(size=films.SMALLER)))
    images = _all(_made(path))
    shapes = [image.shape[:2] for image in images]
    assert shapes == 40 * [films.SMALL[::-1]] + 40 * [films.SMALLER[::-1]]
    assert places(images[40:], film(size=films.SMALLER)) == list(range(40))


@pytest.mark.parametrize(("turned", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_a_film_that_was_taken_on_its_side_stands_upright(
    tmp_path: Path, turned: int, turns: int
) -> None:
    encode(tmp_path / "parts.mp4", film(4), turned=turned)
    upright = [np.rot90(frame, turns) for frame in film(4)]
    assert places(_all(_made(tmp_path / "parts.mp4")), upright) == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_file_that_was_cut_off_has_failed_after_the_frames_before(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"parts.{suffix}"
    encode(path, film())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    images: list[np.ndarray] = []
    with pytest.raises(ValueError, match="truncated"):
        _into(images, _made(path))
    assert len(images) > 5
    assert places(images, film()) == list(range(len(images)))


def test_a_file_that_was_overwritten_in_the_middle_has_failed_after_the_frames_before(
    film_file: Path,
) -> None:
    data = bytearray(film_file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 10] = bytes(len(data) // 10)
    film_file.write_bytes(data)
    images: list[np.ndarray] = []
    with pytest.raises(ValueError, match="damaged"):
        _into(images, _made(film_file))
    assert 10 < len(images) < 30
    assert places(images, film()) == list(range(len(images)))


@pytest.mark.parametrize("content", [b"", b"no film", bytes(50_000)])
def test_a_file_of_garbage_cannot_be_opened(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "parts.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="Invalid data"):
        _all(_made(tmp_path / "parts.mp4"))


def test_a_file_without_video_says_so(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "sound.wav"), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        silence.sample_rate = 8000
        output.mux(stream.encode(silence))
    with pytest.raises(ValueError, match="no video"):
        _all(_made(tmp_path / "sound.wav"))


def test_a_file_that_is_read_slowly_does_not_time_out(film_file: Path) -> None:
    source = _made(film_file, Timeouts(open=0.05, read=0.05))
    source.open()
    source.read()
    time.sleep(0.2)
    assert source.read() is not None
    source.close()


def test_a_damaged_frame_of_a_camera_is_left_out_and_what_follows_a_key_frame_is_not() -> None:
    """Random bytes in the middle of a live stream: no frame of it is made up."""
    pieces = [bytearray(piece) for piece in films.pieces()]
    random = np.random.default_rng(0)
    for piece in pieces[16:19]:
        for start in range(188, len(piece) - 188, 188):  # what a packet holds, not its head
            piece[start + 40 : start + 188] = random.bytes(148)
    with Camera(shows([bytes(piece) for piece in pieces], pace=0.01)) as camera:
        source = _made(camera.url)
        source.open()
        images, broken = [], 0
        with contextlib.suppress(OSError):  # the stream ends
            while True:
                try:
                    images.append(source.read()[0])  # type: ignore[index]
                except DamagedFrameError:
                    broken += 1
        source.close()
    seen = places(images, film())
    assert -1 not in seen
    assert seen == sorted(set(seen))
    assert broken >= 1
    assert seen[-1] == len(film()) - 1


def test_a_camera_is_not_late_for_good_after_bytes_that_passed_for_reordered_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A decoder that has seen reordered frames once holds frames back from then on."""
    reordered = films._Pieces()
    encode(reordered, film(), container="mpegts", bf="3", tune="film", preset="fast")
    damaged = [bytes(piece[:-100]) + bytes(100) for piece in films.pieces()[4:6]]
    after = films.pieces()
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += 1
        return now

    # A clock that ticks whenever it is read, twice per packet: a frame that leaves the decoder with
    # its own packet is 0 ticks old, one that is held back is 2 or more.
    monkeypatch.setattr(video, "time", SimpleNamespace(monotonic=monotonic))
    with Camera(shows(reordered.pieces[:12], damaged, after, after, pace=0.05)) as camera:
        source = _made(camera.url)
        source.open()
        broken, held = 0, []
        with contextlib.suppress(OSError):  # the stream ends
            while True:
                try:
                    found = source.read()
                except DamagedFrameError:
                    broken += 1
                    continue
                assert found is not None
                held.append(now - found[1])
        source.close()
    assert broken >= 1
    assert np.median(held[-len(after) :]) < 2


def test_a_mute_server_ends_the_opening_in_its_time() -> None:
    with Camera(films.is_mute) as camera:
        for url in (camera.url, camera.url.replace("http", "rtsp")):
            began = time.monotonic()
            with pytest.raises(TimeoutError, match=r"no answer within 0\.3 s"):
                _all(_made(url, Timeouts(open=0.3, read=0.3)))
            assert time.monotonic() - began < films.PATIENCE


def test_a_camera_that_falls_silent_ends_the_reading_in_its_time() -> None:
    # In one piece, which the sockets hold: no pause of this machine is a silence before the end.
    with Camera(shows([b"".join(films.pieces())], then=films.is_mute)) as camera:
        images: list[np.ndarray] = []
        with pytest.raises(TimeoutError, match=r"nothing came for 0\.5 s"):
            _into(images, _made(camera.url, Timeouts(open=films.PATIENCE, read=0.5)))
    assert places(images, film()) == list(range(len(images)))
    assert len(images) > 30


def test_bytes_that_are_no_video_end_the_opening() -> None:
    for behaviour in (films.sends_garbage, films.hangs_up):
        with Camera(behaviour) as camera:
            for url in (camera.url, camera.url.replace("http", "rtsp")):
                with pytest.raises((OSError, ValueError, EOFError)):
                    _all(_made(url, Timeouts(open=1.0, read=1.0)))


def test_an_absent_camera_is_refused_at_once() -> None:
    with films.reserved_port() as port, pytest.raises(ConnectionRefusedError):
        _all(_made(f"rtsp://127.0.0.1:{port}/film"))


def test_closing_while_it_reads_closes_the_connection() -> None:
    shown: list[int] = []  # of every connection, once it has ended: its number

    def show(caller, closing):  # type: ignore[no-untyped-def]
        number = camera.calls
        try:
            shows(films.pieces() * 100)(caller, closing)
        finally:
            shown.append(number)

    with Camera(show) as camera:
        source = _made(camera.url)
        source.open()
        reader = threading.Thread(target=_drain, args=(source,))
        reader.start()
        source.close()
        films.wait_for(lambda: len(shown) == camera.calls, "for the connections to be closed")
        assert camera.calls
        reader.join()


def _drain(source: FrameSource) -> None:
    with contextlib.suppress(ValueError):  # it is closed
        while source.read() is not None:
            pass


@pytest.mark.parametrize(
    ("platform", "known_as"),
    [("linux", ("v4l2", "/dev/video2")), ("darwin", ("avfoundation", "2:none"))],
)
def test_webcams_are_found_by_their_number(platform: str, known_as: tuple[str, str]) -> None:
    assert _webcam(2, platform) == known_as


def test_where_no_webcams_are_known_that_is_said() -> None:
    with pytest.raises(UsageError, match="webcams are not supported on plan9"):
        _webcam(0, "plan9")


@pytest.mark.skipif(os.name != "posix", reason="names of devices differ")
def test_a_webcam_that_is_absent_cannot_be_opened() -> None:
    with pytest.raises(OSError, match="No such"):
        WebcamSource(63, Timeouts()).open()
