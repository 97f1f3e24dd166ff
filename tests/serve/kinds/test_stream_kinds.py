"""Films and streams as people have them: every frame is right, or the refusal is as documented."""

from __future__ import annotations

import base64
import contextlib
import io
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from documented import documented
from films import (
    PATIENCE,
    Behaviour,
    Camera,
    _Pieces,
    film,
    hangs_up,
    places,
    reserved_port,
    shows,
)
from PIL import Image
from rtsp_servers import rtsp_server

import rightbatch as rb
from rightbatch._errors import UsageError
from rightbatch._serve.sources import open as opening
from rightbatch._serve.sources.feed import Feed
from rightbatch._serve.sources.frames import Frame, Timeouts
from rightbatch._serve.sources.open import open_source
from rightbatch._serve.sources.video import VideoSource

FILM = film(20)
SMALL = film(20, (128, 64))
H264 = {"preset": "ultrafast", "tune": "zerolatency", "g": "10", "bf": "0"}
H265 = {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "keyint=10:log-level=none"}
Check = Callable[[Path], None]
PATIENT = Timeouts(open=PATIENCE, read=PATIENCE)


def encode(
    place: Any,
    codec: str,
    pixels: str = "yuv420p",
    *,
    frames: list[np.ndarray] = FILM,
    container: str | None = None,
    audio: bool = False,
    steps: tuple[int, ...] = (50,),
    **options: str,
) -> None:
    """Write a film whose frames are `steps` ms apart, in turn."""
    target = str(place) if isinstance(place, Path) else place
    with av.open(target, "w", format=container, options={"flush_packets": "1"}) as output:
        picture: Any = output.add_stream(codec, rate=20)
        picture.height, picture.width = frames[0].shape[:2]
        picture.pix_fmt, picture.options, picture.bit_rate = pixels, options, 2_000_000
        sound: Any = output.add_stream("aac", rate=44100) if audio else None
        time = 0
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.time_base, image.pts = Fraction(1, 1000), time
            time += steps[number % len(steps)]
            output.mux(picture.encode(image))
            if sound is not None:
                silence = np.zeros((1, 2205), np.float32)
                heard = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                heard.sample_rate, heard.pts = 44100, 2205 * number
                output.mux(sound.encode(heard))
        output.mux(picture.encode(None))
        if sound is not None:
            output.mux(sound.encode(None))


def stream(codec: str, **options: Any) -> list[bytes]:
    pieces = _Pieces()
    encode(pieces, codec, container="mpegts", **options)
    return pieces.pieces


def read(source: Any, most: int = 20) -> list[np.ndarray]:
    """Read at most so many frames; the end of a live source is an error of its connection."""
    connection = open_source(source).make(PATIENT)
    connection.open()
    images: list[np.ndarray] = []
    try:
        with contextlib.suppress(OSError if connection.is_live else ()):
            while len(images) < most and (found := connection.read()) is not None:
                images.append(found[0])
    finally:
        connection.close()
    return images


def film_file(name: str, *args: Any, **options: Any) -> Check:
    def check(folder: Path) -> None:
        encode(folder / name, *args, **options)
        assert places(read(folder / name), FILM) == [*range(20)]

    return check


def over_http(*parts: Any) -> Check:
    def check(folder: Path) -> None:
        with Camera(shows(*(stream(**part) for part in parts), then=hangs_up, pace=0.002)) as one:
            images = read(one.url, 20 * len(parts))
        frames = [frame for part in parts for frame in part.get("frames", FILM)]
        assert places(images, frames) == [*range(20)] * len(parts)  # within each size

    return check


def changes_codec(folder: Path) -> None:
    first, second = stream("libx264", **H264), stream("libx265", **H265)
    seen: list[int] = []

    def deliver(frame: Frame) -> None:
        seen.extend(places([frame.image], FILM))
        if len(seen) >= 35:
            done.set()

    done = threading.Event()
    with Camera(shows(first, *[second] * 50), shows(*[second] * 50)) as camera:
        feed = Feed(open_source(camera.url), deliver, stall_after=1.0)
        feed.start()
        assert done.wait(60)
        feed.stop(10)
    assert -1 not in seen


def rtsp(*transports: str, user: str = "", login: str | None = None) -> Check:
    def check(folder: Path) -> None:
        with rtsp_server(*transports, login=login) as server:
            images = read(f"rtsp://{user}{server.address}/film")
        assert places(images, film()) == [*range(20)]

    return check


def redirected(host: str) -> Check:
    def check(folder: Path) -> None:
        with (
            rtsp_server("TCP") as other,
            rtsp_server("TCP", location=f"rtsp://{host}:{other.server_address[1]}/film") as first,
        ):
            try:
                assert places(read(f"rtsp://{first.address}/film"), film()) == [*range(20)]
            finally:
                assert bool(other.requests) == (host == "127.0.0.1")

    return check


def rtmp(folder: Path) -> None:
    """FFmpeg's listener stands in for a server, and a process of its own for the camera: PyAV holds
    Python's lock while it writes."""
    encode(folder / "film.flv", "libx264", **H264)
    script = """
import sys, time, av
with av.open(sys.argv[1]) as film:
    for _ in range(1200):
        try:
            output = av.open(sys.argv[2], "w", format="flv")
            break
        except OSError:
            time.sleep(0.05)
    with output:
        stream = output.add_stream_from_template(film.streams.video[0])
        for packet in film.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
"""
    with reserved_port() as port:
        url = f"rtmp://127.0.0.1:{port}/live/film"
        command = [sys.executable, "-c", script, str(folder / "film.flv"), url]
        source = VideoSource(url, True, PATIENT, options={"listen": "1"})
        with subprocess.Popen(command) as camera:
            try:
                source.open()
                read = (source.read() for _ in range(15))
                images = [found[0] for found in read if found is not None]
            finally:
                source.close()
                camera.kill()
    assert places(images, FILM) == [*range(15)]


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (value,) * 3).save(file, "JPEG")
    return file.getvalue()


def mjpeg(part: Callable[[bytes], bytes], kind: bytes = b"multipart/x-mixed-replace; boundary=b"):  # type: ignore[no-untyped-def]
    def behave(caller: Any, closing: threading.Event) -> None:
        caller.recv(65536)
        body = b"".join(part(jpeg(value)) for value in range(0, 200, 10))
        caller.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: " + kind + b"\r\n\r\n" + body)

    behaviour: Behaviour = behave

    def check(folder: Path) -> None:
        with Camera(behaviour) as camera:
            images = read(camera.url)
        assert [round(float(image.mean()), -1) for image in images] == [*range(0, 200, 10)]

    return check


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def hls(folder: Path) -> None:
    encode(folder / "film.m3u8", "libx264", container="hls", audio=True, **H264)
    with web_server(folder) as url:
        assert places(read(f"{url}/film.m3u8"), FILM) == [*range(20)]


def snapshot(folder: Path) -> None:
    (folder / "now.jpg").write_bytes(jpeg(100))
    with web_server(folder) as url:
        images = read(f"{url}/now.jpg", 3)
    assert [round(float(image.mean()), -1) for image in images] == [100] * 3


def two_streams_of_one_camera(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.jpg").write_bytes(jpeg(100))
    with web_server(folder) as url:
        sources = [f"{url}/a.jpg", f"{url}/b.jpg"]
        with rb.serve(lambda images: [0] * len(images), sources, latency=1.0) as server:
            seen = set()
            for line in server:
                seen.add(line.source)
                if len(seen) == 2:
                    break
    assert len(seen) == 2


def refused(url: str) -> Check:
    return lambda folder: open_source(url) and None


PLAIN = b"--b\r\nContent-Type: image/jpeg\r\n\r\n"
BASIC = "Basic " + base64.b64encode(b"me:12#p@ss/1").decode()
KINDS: dict[str, Check] = {
    "H.264": film_file("a.mp4", "libx264", **H264),
    "H.265": film_file("a.mp4", "libx265", **H265),
    "H.265, 10 bits": film_file("a.mkv", "libx265", "yuv420p10le", **H265),
    "VP9": film_file("a.webm", "libvpx-vp9"),
    "AV1": film_file("a.mp4", "libsvtav1", preset="10"),
    "MPEG-4 in AVI": film_file("a.avi", "mpeg4"),
    "MJPEG in AVI": film_file("a.avi", "mjpeg", "yuvj420p"),
    "with an audio track": film_file("a.mp4", "libx264", audio=True, **H264),
    "variable frame rate": film_file("a.mkv", "libx264", steps=(20, 200, 70), **H264),
    "transport stream over HTTP, H.264": over_http({"codec": "libx264", **H264}),
    "transport stream over HTTP, H.265": over_http({"codec": "libx265", **H265}),
    "transport stream over HTTP with audio": over_http({"codec": "libx264", "audio": True, **H264}),
    "a stream that changes its resolution": over_http(
        {"codec": "libx264", **H264}, {"codec": "libx264", "frames": SMALL, **H264}
    ),
    "a stream that changes its codec": changes_codec,
    "HLS": hls,
    "RTSP over TCP": rtsp("TCP", "UDP"),
    "RTSP of a camera that has UDP only": rtsp("UDP"),
    "RTMP": rtmp,
    "RTSP that redirects on the same host": redirected("127.0.0.1"),
    "RTSP that redirects to another host": redirected("localhost"),
    "password with # @ / and digits first, encoded": rtsp(
        "TCP", user="me:12%23p%40ss%2F1@", login=BASIC
    ),
    "password with # / ? as it is": refused("rtsp://me:12#p/1@camera/film"),
    "MJPEG": mjpeg(lambda file: PLAIN + file + b"\r\n"),
    "MJPEG without a first boundary": mjpeg(lambda file: file + b"\r\n" + PLAIN),
    "MJPEG with a wrong Content-Length": mjpeg(
        lambda file: b"--b\r\nContent-Length: 7\r\n\r\n" + file + b"\r\n"
    ),
    "MJPEG without a Content-Type": mjpeg(lambda file: PLAIN + file, b"application/octet-stream"),
    "a snapshot's URL": snapshot,
    "two streams of one camera": two_streams_of_one_camera,
    "SRT": refused("srt://camera:9000"),
}


def test_the_table_has_every_kind() -> None:
    assert documented("Films and streams").keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_served_right_or_refused_as_documented(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = documented("Films and streams")[kind]
    if outcome == "served":
        KINDS[kind](tmp_path)
        return
    if kind == "SRT" and opening._has_srt():
        pytest.skip("this PyAV has SRT")
    with pytest.raises((UsageError, OSError)) as raised:
        KINDS[kind](tmp_path)
    assert outcome in str(raised.value)
    assert "12#p" not in str(raised.value)
