"""RTSP cameras that fail when they are told to: GStreamer's server, run by Debian's own Python.

    /usr/bin/python3 rtsp_server.py '{"cameras": 8, "rate": 5, "films": [[320, 240, "film.yuv"]]}'

It needs the packages gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-{base,good,bad,ugly} and
python3-gi. Films are raw I420 frames; the first is shown, the second after `resize`. Each camera is
a server of its own, at a port of its own. Commands come on standard input, a line each, as
`COMMAND CAMERA`:

    kill      it drops its connections, and is at its port no more
    return    it is there again
    stall     it goes on to answer, and takes no more frames
    garble    it sends random bytes in place of H.264
    resume    it takes frames, and sends them as they are
    resize    it goes on with the next film, of another size
    noise     instead of it something is at its port that answers with random bytes; until `return`
    quit      says what was sent, and ends

Answers are lines of JSON with the time on the monotonic clock, which the reader of the frames has
too. Each frame has a marker that says its camera and its number; only frames that a pipeline took
are counted as sent.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import gi

sys.path.insert(0, str(Path(__file__).parent))
import marker

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

# A key frame each second, as for cameras that are watched live; parameters with each of them.
PIPELINE = (
    "( appsrc name=frames is-live=true do-timestamp=true format=time "
    "! x264enc tune=zerolatency speed-preset=ultrafast threads=1 bitrate=600 key-int-max={rate} "
    "! breakmydata name=garbler probability=0 "
    "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


def say(**message: Any) -> None:
    print(json.dumps({"at": time.monotonic()} | message), flush=True)


class Film:
    """Raw frames of one size, in a circle, with a marker each."""

    def __init__(self, width: int, height: int, path: str) -> None:
        self.width, self.height = width, height
        data = Path(path).read_bytes()
        size = width * height * 3 // 2
        self._frames = [data[start : start + size] for start in range(0, len(data), size)]

    def frame(self, camera: int, number: int) -> bytes:
        picture = bytearray(self._frames[number % len(self._frames)])
        line = marker.strip(camera, number)
        for row in range(marker.BLOCK):
            picture[row * self.width : row * self.width + len(line)] = line
        chroma = self.width * self.height
        for plane in (chroma, chroma + chroma // 4):
            for row in range(marker.BLOCK // 2):
                start = plane + row * self.width // 2
                picture[start : start + len(line) // 2] = b"\x80" * (len(line) // 2)
        return bytes(picture)


class Camera:
    """One server with one stream, that all who connect share."""

    def __init__(self, index: int, rate: float, films: list[Film]) -> None:
        self.index = index
        self.sent: list[tuple[int, float]] = []
        self._films = films
        self._film = 0
        self._rate = rate
        self._stalled = False
        self._number = 0
        self._garbled = 0.0
        self._pipeline: Any = None
        self._server: Any = None
        self._source = 0
        self._noise: Noise | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.start()
        # Cameras are not in step.
        GLib.timeout_add(int(random.random() * 1000 / rate), self._begin)

    def start(self) -> None:
        self.stop()
        self._server = GstRtspServer.RTSPServer()
        self._server.set_address("127.0.0.1")
        self._server.set_service(str(self.port))
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(PIPELINE.format(rate=max(1, round(self._rate))))
        factory.set_shared(True)
        factory.connect("media-configure", self._configured)
        self._server.get_mount_points().add_factory("/film", factory)
        self._source = self._server.attach(None)
        if not self._source:
            raise OSError(f"port {self.port} is taken")

    def stop(self) -> None:
        if self._noise is not None:
            self._noise.close()
            self._noise = None
        if self._server is not None:
            GLib.source_remove(self._source)
            self._server.client_filter(lambda server, client: GstRtspServer.RTSPFilterResult.REMOVE)
            self._server = self._pipeline = None

    def stall(self) -> None:
        self._stalled = True

    def resume(self) -> None:
        self._stalled = False
        self._garble(0.0)

    def garble(self) -> None:
        self._garble(1.0)

    def resize(self) -> None:
        self._film = (self._film + 1) % len(self._films)
        self._set_caps()

    def make_noise(self) -> None:
        self.stop()
        self._noise = Noise(self.port)

    def _garble(self, probability: float) -> None:
        self._garbled = probability
        if self._pipeline is not None:
            self._pipeline.get_by_name("garbler").set_property("probability", probability)

    def _configured(self, factory: Any, media: Any) -> None:
        self._pipeline = media.get_element()
        media.connect("unprepared", self._unprepared, self._pipeline)
        self._set_caps()
        self._garble(self._garbled)

    def _unprepared(self, media: Any, pipeline: Any) -> None:
        if self._pipeline is pipeline:
            self._pipeline = None

    def _set_caps(self) -> None:
        if self._pipeline is not None:
            film = self._films[self._film]
            caps = (
                f"video/x-raw,format=I420,width={film.width},height={film.height},"
                f"framerate={round(self._rate * 100)}/100"
            )
            self._pipeline.get_by_name("frames").set_property("caps", Gst.Caps.from_string(caps))

    def _begin(self) -> bool:
        GLib.timeout_add(round(1000 / self._rate), self._take)
        return False

    def _take(self) -> bool:
        if self._pipeline is not None and not self._stalled:
            data = self._films[self._film].frame(self.index, self._number)
            source = self._pipeline.get_by_name("frames")
            at = time.monotonic()
            if source.emit("push-buffer", Gst.Buffer.new_wrapped(data)) == Gst.FlowReturn.OK:
                self.sent.append((self._number, at))
        self._number += 1  # a camera takes pictures, whether anyone looks or not
        return True


class Noise:
    """Answers with random bytes whatever it is asked."""

    def __init__(self, port: int) -> None:
        self._open = [socket.create_server(("127.0.0.1", port))]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._open[0].accept()
                self._open.append(caller)
                threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller.sendall(os.urandom(1000))
                time.sleep(0.01)

    def close(self) -> None:
        for opened in self._open:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()


class Commands:
    """Lines from standard input, done on the loop's thread."""

    def __init__(self, cameras: list[Camera], loop: Any) -> None:
        self._cameras = cameras
        self._loop = loop
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            GLib.idle_add(self._do, line.split())
        GLib.idle_add(self._do, ["quit"])

    def _do(self, words: list[str]) -> bool:
        if words == ["quit"]:
            say(event="sent", cameras=[camera.sent for camera in self._cameras])
            self._loop.quit()
            return False
        name, index = words
        camera = self._cameras[int(index)]
        known = {
            "kill": camera.stop,
            "return": camera.start,
            "stall": camera.stall,
            "resume": camera.resume,
            "garble": camera.garble,
            "resize": camera.resize,
            "noise": camera.make_noise,
        }
        known[name]()
        say(event="done", command=name, camera=int(index))
        return False


def main() -> None:
    asked = json.loads(sys.argv[1])
    Gst.init(None)
    films = [Film(*film) for film in asked["films"]]
    cameras = [Camera(index, asked["rate"], films) for index in range(asked["cameras"])]
    loop = GLib.MainLoop()
    Commands(cameras, loop)
    urls = [f"rtsp://127.0.0.1:{camera.port}/film" for camera in cameras]
    say(event="ready", urls=urls, version=Gst.version_string())
    loop.run()
    for camera in cameras:
        camera.stop()


if __name__ == "__main__":
    main()
