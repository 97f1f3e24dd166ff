"""Frames of cameras and video files, decoded by PyAV (FFmpeg)."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rightbatch._errors import UsageError
from rightbatch._serve.sources.connection import Connection
from rightbatch._serve.sources.decoding import MAX_PIXELS
from rightbatch._serve.sources.frames import DamagedFrameError, Timeouts
from rightbatch._serve.sources.rtsp import follow_redirects

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PROBE = {"analyzeduration": "1", "fpsprobesize": "0"}
"""Shortest analysis of a live stream (µs; 0 means the default). By default FFmpeg takes 5 s to
estimate the rate of a camera with 5 frames per second and then returns all of these frames at once.
The decoder does not need the analysis."""
_PROTOCOLS = {"": "file,crypto,data", "http": "http,https,httpproxy,tcp,tls,crypto,data"}
"""Of a file and of a URL, by the start of the scheme: what a playlist may name in it."""
_TOLERANCE = 1.0  # seconds that a file may be shorter than its header says


class VideoSource(Connection):
    """One connection to a camera, or one pass through a video file.

    Decoders conceal the missing parts of a damaged frame and of all frames that refer to it. Such
    frames are not delivered: those of a camera are skipped up to the next key frame, a file fails.
    FFmpeg crashes if it is closed during a read; the timeouts bound how long a read takes.
    In an RTSP or transport stream the end of a frame is known when the next frame begins, so its
    capture time is late by one frame interval.
    `container` and `options` are FFmpeg's format name and its options. `io_open`, if given, opens
    what FFmpeg reads: the URL, and what a playlist names.
    """

    def __init__(
        self,
        url: str,
        is_live: bool,
        timeouts: Timeouts,
        *,
        container: str | None = None,
        options: Mapping[str, str] | None = None,
        io_open: Callable[[str, int, Any], Any] | None = None,
    ) -> None:
        super().__init__()
        self.is_live = is_live
        self._url = url
        self._timeouts = timeouts
        self._format = container
        self._io_open = io_open
        self._options = dict(options or {})
        if is_live:
            self._options = _PROBE | self._options
        if container is None and "://" not in url:
            self._options = {"protocol_whitelist": _PROTOCOLS[""]} | self._options
        elif url.startswith("http"):
            # Redirects to any host: those on the same one are followed by `HttpSource`.
            self._options = {
                "protocol_whitelist": _PROTOCOLS["http"],
                "max_redirects": "0",
            } | self._options
        if url.startswith(("rtsp:", "rtsps:")):
            # Over UDP only where the camera refuses TCP: lost packets damage frames.
            self._options = {"rtsp_flags": "prefer_tcp"} | self._options
        self._container: Any = None
        self._stream: Any = None
        self._codec: Any = None
        self._reformatter: Any = None
        self._packets: Iterator[Any] = iter(())
        self._decoded: deque[Any] = deque()
        self._damaged = False  # until the next key frame
        self._failure: Exception | None = None  # raised after the decoded frames are delivered
        self._seconds = 0.0  # end of the last packet of the file

    def _open(self) -> None:
        import av

        # Timeouts apply to network sources only: a disk may be slow.
        is_remote = self.is_live or "://" in self._url
        timeout = (self._timeouts.open, self._timeouts.read) if is_remote else None
        url = self._url
        if url.startswith(("rtsp:", "rtsps:")) and "listen" not in self._options["rtsp_flags"]:
            url = follow_redirects(url, self._timeouts.open)
        with _timed(self._timeouts.open, "no answer within"):
            self._container = av.open(
                url,
                format=self._format,
                options=self._options,
                timeout=timeout,
                io_open=self._io_open,
            )
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise ValueError("it contains no video stream")
        self._codec = self._stream.codec_context
        _check_size(self._codec.width, self._codec.height)
        if not self.is_live:
            self._stream.thread_type = "AUTO"
        self._set_up(self._codec)
        self._reformatter = av.video.reformatter.VideoReformatter()
        # The other streams of a file show how long it is.
        self._packets = self._container.demux(*(self._stream,) if self.is_live else ())

    def _set_up(self, codec: Any) -> None:
        if self.is_live:
            # Frame threads delay every frame by the number of threads; slice threads do not
            # report damage.
            codec.thread_count = 1
        # Decoders buffer and reorder frames: each carries the time of its own packet.
        codec.copy_opaque = True
        codec.options = dict(codec.options or {}) | {"max_pixels": str(MAX_PIXELS)}

    def _reset_decoder(self) -> None:
        """Replace the decoder: after damaged data it may expect reordered frames and delay all."""
        import av

        codec = av.CodecContext.create(self._codec.name, "r")
        codec.extradata = self._codec.extradata
        self._set_up(codec)
        self._codec = codec

    def _read(self) -> tuple[NDArray[np.uint8], float] | None:
        while True:
            if self._decoded:
                return self._checked(self._decoded.popleft())
            if self._failure is not None:
                raise self._failure
            packet = self._next_packet()
            if packet is None:
                self._check_end()
                return None
            if packet.is_corrupt and packet.size and not self.is_live:
                # Incomplete if the file ends here; at the join of two files it may be complete.
                following = self._next_packet()
                if following is None or not following.size:
                    self._fail(ValueError("the file is truncated"))
                    continue
                self._decode(packet)
                packet = following
            if self._failure is None:
                self._decode(packet)

    def _checked(self, frame: Any) -> tuple[NDArray[np.uint8], float]:
        if frame.is_corrupt:
            self._damaged = True
        elif frame.key_frame:
            self._damaged = False
        if not self._damaged:
            return self._image(frame), frame.opaque or time.monotonic()
        if self.is_live:
            raise DamagedFrameError("a frame arrived damaged")
        raise ValueError("the file is damaged")

    def _next_packet(self) -> Any:
        with _timed(self._timeouts.read, "nothing came for"):
            packet = next(self._packets, None)
        if packet is not None and packet.size:
            packet.opaque = time.monotonic()
            if packet.pts is not None and not self.is_live:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._seconds = max(self._seconds, end)
        return packet

    def _decode(self, packet: Any) -> None:
        import av

        if packet.stream is not self._stream:
            return
        if self.is_live and self._damaged and packet.is_keyframe:
            self._reset_decoder()
        try:
            self._decoded.extend(self._codec.decode(packet if packet.size else None))
        except av.error.EOFError:
            pass  # some decoders raise it when they are flushed
        except av.error.InvalidDataError as error:
            if self.is_live:
                self._damaged = True
                raise DamagedFrameError("a packet arrived damaged") from error
            self._fail(ValueError("the file is damaged"))

    def _fail(self, error: Exception) -> None:
        """Fail with `error` after the frames that the decoder still holds are delivered."""
        import av

        self._failure = error
        with suppress(av.error.FFmpegError):
            self._decoded.extend(self._codec.decode(None))

    def _check_end(self) -> None:
        """Raise if a Matroska file is truncated, which FFmpeg treats as its end."""
        whole = (self._container.duration or 0) / 1e6
        if "matroska" in self._container.format.name and self._seconds < whole - _TOLERANCE:
            raise ValueError(f"the file is truncated after {self._seconds:.1f} of {whole:.1f} s")

    def _image(self, frame: Any) -> NDArray[np.uint8]:
        import numpy as np

        _check_size(frame.width, frame.height)
        image = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        if turns := round(frame.rotation / 90) % 4:  # of a phone's video
            image = np.rot90(image, turns)
        return np.ascontiguousarray(image)

    def _release(self) -> None:
        self._decoded.clear()
        self._packets = iter(())
        container, self._container = self._container, None
        if container is not None:
            container.close()


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"frames of {width}×{height} pixels exceed the limit of {MAX_PIXELS}")


@contextmanager
def _timed(seconds: float, what: str) -> Iterator[None]:
    """Raise TimeoutError for the various errors of FFmpeg after a timeout."""
    import av

    began = time.monotonic()
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, av.error.ExitError) or time.monotonic() - began >= seconds:
            raise TimeoutError(f"{what} {seconds:g} s") from None
        raise


class WebcamSource(VideoSource):
    """A camera of this machine, by number."""

    def __init__(self, number: int, timeouts: Timeouts) -> None:
        container, url = _webcam(number, sys.platform)
        super().__init__(url, True, timeouts, container=container)


def _webcam(number: int, platform: str) -> tuple[str, str]:
    """Return FFmpeg's format and device name of the camera."""
    if platform.startswith("linux"):
        return "v4l2", f"/dev/video{number}"
    if platform == "darwin":
        return "avfoundation", f"{number}:none"
    if platform == "win32":
        return "dshow", f"video={_windows_name(number)}"
    raise UsageError(f"webcams are not supported on {platform}; use a URL or a file")


def _windows_name(number: int) -> str:
    """Return the camera at index `number` of FFmpeg's list; Windows has no numbers."""
    import av

    names = [found.name for found in av.enumerate_input_devices("dshow")]
    if number >= len(names):
        raise OSError(f"there is no webcam {number}; there are {len(names)}")
    return str(names[number])
