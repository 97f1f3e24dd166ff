"""Videos of the conveyor belt, and servers and cameras that stream them or fail in a chosen way."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from rightbatch.examples.parts import render_frames

SMALL = (160, 96)
SMALLER = (128, 64)
PATIENCE = 120.0  # seconds after which a test gives up waiting; a loaded machine may need many


@cache
def film(count: int = 40, size: tuple[int, int] = SMALL) -> list[np.ndarray]:
    return [frame for frame, _ in render_frames(count, size=size)]


def encode(
    path: Path | Any,
    frames: Sequence[np.ndarray],
    *,
    rate: int = 20,
    key_every: int = 10,
    container: str | None = None,
    turned: int = 0,
    **options: str,
) -> None:
    """H.264 in whatever container the path's suffix says. `path` may be a file-like object."""
    place = str(path) if isinstance(path, Path) else path
    movflags = {"movflags": "faststart"} if str(place).endswith(("mp4", "mov")) else {}
    with av.open(place, "w", format=container, options=movflags) as output:
        stream = output.add_stream("libx264", rate=rate)
        if turned:
            stream.set_display_rotation(turned)
        _write(output, stream, frames, {"g": str(key_every), "bf": "0"} | options)


def _write(output: Any, stream: Any, frames: Iterable[np.ndarray], options: dict[str, str]) -> None:
    frames = iter(frames)
    first = next(frames)
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.options = {"preset": "ultrafast", "tune": "zerolatency"} | options
    for frame in itertools.chain([first], frames):
        output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    output.mux(stream.encode(None))


def places(images: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> list[int]:
    """Which frame of the film each image is; -1 for one that is none of them."""
    found = []
    for image in images:
        alike = [frame for frame in frames if frame.shape == image.shape]
        errors = [np.abs(image.astype(int) - frame).mean() for frame in alike]
        best = int(np.argmin(errors)) if errors else -1
        found.append(best if errors and errors[best] < 8 else -1)
    return found


class _Pieces:
    """A file whose writes are kept apart."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        return len(data)


@cache
def pieces(count: int = 40, size: tuple[int, int] = SMALL) -> list[bytes]:
    """A film as a transport stream, in as many pieces as FFmpeg writes: about one a frame."""
    file = _Pieces()
    encode(file, film(count, size), container="mpegts", flush_packets="1")
    return file.pieces


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port where nobody listens, and which nobody else gets: a bound socket holds it.

    The test's own servers may listen there, since they set SO_REUSEADDR as this one does. A port
    that was only found free could be given to another process before the test uses it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def wait_for(condition: Callable[[], Any], what: str = "") -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"waited in vain {what}"
        time.sleep(0.01)


Behaviour = Callable[[socket.socket, threading.Event], None]


class Camera:
    """A TCP server that does to its first caller the first behaviour, to the second the second, and
    to all later ones the last."""

    def __init__(self, *behaviours: Behaviour, port: int = 0) -> None:
        self._behaviours = behaviours
        self._closing = threading.Event()
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = int(self._server.getsockname()[1])
        self.calls = 0
        self._sockets: list[socket.socket] = [self._server]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/live"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._server.accept()
                behaviour = self._behaviours[min(self.calls, len(self._behaviours) - 1)]
                self.calls += 1
                self._sockets.append(caller)
                thread = threading.Thread(target=self._answer, args=(behaviour, caller))
                self._threads.append(thread)
                thread.start()

    def _answer(self, behaviour: Behaviour, caller: socket.socket) -> None:
        with contextlib.suppress(OSError), caller:
            behaviour(caller, self._closing)

    def close(self) -> None:
        self._closing.set()
        for opened in self._sockets:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shows(*films: list[bytes], then: Behaviour | None = None, pace: float = 0.02) -> Behaviour:
    """Answers an HTTP request with films, at the pace of a camera, and then does something else."""

    def behave(caller: socket.socket, closing: threading.Event) -> None:
        caller.recv(65536)
        caller.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
        for one in films:
            for piece in one:
                caller.sendall(piece)
                if closing.wait(pace):
                    return
        if then is not None:
            then(caller, closing)

    return behave


def is_mute(caller: socket.socket, closing: threading.Event) -> None:
    closing.wait()


def sends_garbage(caller: socket.socket, closing: threading.Event) -> None:
    random = np.random.default_rng(0)
    while not closing.wait(0.01):
        caller.sendall(random.bytes(2000))


def hangs_up(caller: socket.socket, closing: threading.Event) -> None:
    caller.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def rtsp_camera() -> Iterator[int]:
    """A real RTSP camera that shows the film again and again to whoever listens at the port.

    It is a process of its own: PyAV holds Python's lock while it calls, and so would wait for
    itself.
    """
    with (
        reserved_port() as port,
        subprocess.Popen([sys.executable, __file__, str(port)], stdin=subprocess.PIPE) as process,
    ):
        try:
            yield port
        finally:
            process.kill()


def _show_over_rtsp(port: int, pace: float = 0.02) -> None:
    frames = film()

    def paced() -> Iterator[np.ndarray]:
        while True:
            for frame in frames:
                time.sleep(pace)
                yield frame

    while True:
        with contextlib.suppress(OSError):
            url, options = f"rtsp://127.0.0.1:{port}/film", {"rtsp_transport": "tcp"}
            with av.open(url, "w", format="rtsp", options=options) as output:
                stream = output.add_stream("libx264", rate=20)
                _write(output, stream, paced(), {"g": "10", "bf": "0"})
        time.sleep(0.02)


def process_ids() -> set[int]:
    """The children of this process that run."""
    import psutil

    return {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}


if __name__ == "__main__":
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    _show_over_rtsp(int(sys.argv[1]))
