"""Frames of cameras and video files, decoded by PyAV (FFmpeg)."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rightbatch._errors import UsageError
from rightbatch._serve.sources.connection import Connection
from rightbatch._serve.sources.frames import DamagedFrameError, Timeouts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PROBE = {"analyzeduration": "1", "fpsprobesize": "0"}
"""FFmpeg looks at a live stream for as short as it can (µs; 0 would be its default) before it gives
the first frame. By default it takes 5 s to estimate the rate of a camera with 5 frames a second,
and then brings all of these frames at once. What it did not see the decoder learns by itself."""
_TOLERANCE = 1.0  # seconds that a file may lack of what it says


class VideoSource(Connection):
    """One connection to a camera, or one pass through a video file.

    Decoders make up what is missing of a damaged frame, and of all that refer to it. Such frames
    are not delivered: a camera's are left out up to the next key frame, a file has failed there.
    FFmpeg does not survive being closed during a read; the timeouts bound how long one takes.
    It knows where a frame of an RTSP or transport stream ends when the next one begins: such a
    frame is one frame's interval old when it counts as captured.
    `container` and `options` are FFmpeg's name of the format and its options.
    """

    def __init__(
        self,
        url: str,
        is_live: bool,
        timeouts: Timeouts,
        *,
        container: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.is_live = is_live
        self._url = url
        self._timeouts = timeouts
        self._format = container
        self._options = dict(options or {})
        if is_live:
            self._options = _PROBE | self._options
        if url.startswith(("rtsp:", "rtsps:")):
            self._options = {"rtsp_transport": "tcp"} | self._options
        self._container: Any = None
        self._stream: Any = None
        self._codec: Any = None
        self._reformatter: Any = None
        self._packets: Iterator[Any] = iter(())
        self._decoded: deque[Any] = deque()
        self._damaged = False  # until the next key frame
        self._failure: Exception | None = None  # to be raised behind what is decoded
        self._seconds = 0.0  # of the file, so far

    def _open(self) -> None:
        import av

        # A file may lie on a slow disk; what comes over the network is watched.
        is_remote = self.is_live or "://" in self._url
        timeout = (self._timeouts.open, self._timeouts.read) if is_remote else None
        with _timed(self._timeouts.open, "no answer within"):
            self._container = av.open(
                self._url, format=self._format, options=self._options, timeout=timeout
            )
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise ValueError("there is no video in it")
        self._codec = self._stream.codec_context
        if not self.is_live:
            self._stream.thread_type = "AUTO"
        self._set_up(self._codec)
        self._reformatter = av.video.reformatter.VideoReformatter()
        # A file's other streams tell how far it goes.
        self._packets = self._container.demux(*(self._stream,) if self.is_live else ())

    def _set_up(self, codec: Any) -> None:
        if self.is_live:
            # Threads with a frame each delay every frame by their number; threads with a part of
            # the frame each do not notice damage.
            codec.thread_count = 1
        # Decoders hold frames back and reorder them: each carries the time of its own packet.
        codec.copy_opaque = True

    def _begin_anew(self) -> None:
        """A decoder that has met garbage may take it for reordered frames, and hold all frames back
        from then on: they would come, and all be late."""
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
                # Part of one, if the file ends here; where two were joined it may be whole.
                following = self._next_packet()
                if following is None or not following.size:
                    self._fail(ValueError("the file is cut off"))
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
            self._begin_anew()
        try:
            self._decoded.extend(self._codec.decode(packet if packet.size else None))
        except av.error.EOFError:
            pass  # some decoders say so when they are emptied
        except av.error.InvalidDataError as error:
            if self.is_live:
                self._damaged = True
                raise DamagedFrameError("a packet arrived damaged") from error
            self._fail(ValueError("the file is damaged"))

    def _fail(self, error: Exception) -> None:
        """Once the frames that the decoder still holds are delivered."""
        import av

        self._failure = error
        with suppress(av.error.FFmpegError):
            self._decoded.extend(self._codec.decode(None))

    def _check_end(self) -> None:
        """FFmpeg takes a Matroska file that was cut off for one that has ended."""
        whole = (self._container.duration or 0) / 1e6
        if "matroska" in self._container.format.name and self._seconds < whole - _TOLERANCE:
            raise ValueError(f"the file is cut off after {self._seconds:.1f} of {whole:.1f} s")

    def _image(self, frame: Any) -> NDArray[np.uint8]:
        import numpy as np

        image = self._reformatter.reformat(frame, format="rgb24").to_ndarray()
        if turns := round(frame.rotation / 90) % 4:  # as a telephone was held
            image = np.rot90(image, turns)
        return np.ascontiguousarray(image)

    def _let_go(self) -> None:
        self._decoded.clear()
        self._packets = iter(())
        container, self._container = self._container, None
        if container is not None:
            container.close()


@contextmanager
def _timed(seconds: float, what: str) -> Iterator[None]:
    """FFmpeg names many causes for a call that PyAV interrupted after its timeout."""
    import av

    began = time.monotonic()
    try:
        yield
    except av.error.FFmpegError as error:
        if isinstance(error, av.error.ExitError) or time.monotonic() - began >= seconds:
            raise TimeoutError(f"{what} {seconds:g} s") from None
        raise


class WebcamSource(VideoSource):
    """A camera of this machine, by its number."""

    def __init__(self, number: int, timeouts: Timeouts) -> None:
        container, url = _webcam(number, sys.platform)
        super().__init__(url, True, timeouts, container=container)


def _webcam(number: int, platform: str) -> tuple[str, str]:
    """FFmpeg's format and name of the camera."""
    if platform.startswith("linux"):
        return "v4l2", f"/dev/video{number}"
    if platform == "darwin":
        return "avfoundation", f"{number}:none"
    if platform == "win32":
        return "dshow", f"video={_windows_name(number)}"
    raise UsageError(f"no webcams are known on {platform}; give a URL or a file")


def _windows_name(number: int) -> str:
    """Windows numbers no cameras: the one at this place in FFmpeg's list."""
    import av

    names = [found.name for found in av.enumerate_input_devices("dshow")]
    if number >= len(names):
        raise OSError(f"there is no webcam {number}; there are {len(names)}")
    return str(names[number])
