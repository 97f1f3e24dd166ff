"""Cameras over HTTP: MJPEG streams, snapshots that are fetched again and again, or a video.

FFmpeg reads videos. It follows redirects to any host, and refuses MJPEG streams whose boundaries
are not as the standard has them, so the first request is made here.
"""

from __future__ import annotations

import http.client
import io
import re
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rightbatch._serve.sources.connection import Connection
from rightbatch._serve.sources.decoding import (
    MAX_PIXELS,
    PHOTOS,
    check_single,
    open_picture,
    to_rgb,
)
from rightbatch._serve.sources.frames import DamagedFrameError, Timeouts
from rightbatch._serve.sources.http_lines import Lines
from rightbatch._serve.sources.http_login import login_handlers
from rightbatch._serve.sources.jpegs import JPEG_START, JpegStream
from rightbatch._serve.sources.structure import inspect
from rightbatch._serve.sources.urls import resolve, with_login, without_login
from rightbatch._serve.sources.video import VideoSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_BYTES = 20_000_000  # of a picture
_PART = 65_536
_SNIFFED = 2048  # bytes in which a stream of pictures shows itself, whatever its header says
_SIGNATURE = 12  # bytes
_PICTURES = rb"\x89PNG\r\n|RIFF....WEBP|BM"  # besides JPEG
_PLAYLISTS = (
    "application/vnd.apple.mpegurl",
    "application/x-mpegurl",
    "audio/mpegurl",
    "audio/x-mpegurl",
    "application/dash+xml",
)
_SNAPSHOT_EVERY = 0.1  # seconds; assumption: cameras renew their snapshot at most so often


class HttpSource(Connection):
    """A camera at an `http://` or `https://` URL."""

    is_live = True

    def __init__(self, url: str, timeouts: Timeouts) -> None:
        super().__init__()
        self._url = url
        self._timeouts = timeouts
        self._video: VideoSource | None = None
        self._response: Any = None
        self._lines = Lines()
        self._is_stream = False
        self._parser = JpegStream(_MOST_BYTES)
        self._found: deque[bytes | None] = deque()
        self._count = 0  # pictures of this response
        self._fetched = 0.0
        self._interrupted = threading.Event()

    def _open(self) -> None:
        kind = self._request()
        first = self._start()
        self._is_stream = kind.startswith("multipart/")
        start = first[:_SNIFFED]
        if self._is_file(kind, start):
            self._take(first)
        elif self._is_stream or kind == "image/jpeg" or _shows_jpegs(start):
            self._feed(first)
        else:
            url = self._response.geturl()  # after redirects on the same host
            self._release()
            self._video = self._video_at(url, kind, start)
            self._check_open()  # after the assignment: `close` closes the video that it finds
            self._video.open()

    def _video_at(self, url: str, kind: str, start: bytes) -> VideoSource:
        """Return the video at `url`, not opened, by the media type and the start of its answer."""
        container, io_open = None, None
        if kind in _PLAYLISTS or start.startswith((b"#EXTM3U", b"<?xml")):
            io_open = _SameHostFiles(url, self._url, self._timeouts, self._lines)
            # FFmpeg takes a playlist for one only if the path ends with .m3u8.
            container = "hls" if start.startswith(b"#EXTM3U") else None
        login = with_login(url, self._url)
        return VideoSource(login, True, self._timeouts, container=container, io_open=io_open)

    def _read(self) -> tuple[NDArray[np.uint8], float] | None:
        if self._video is not None:
            return self._video.read()
        while not self._found:
            part = self._receive()
            if part:
                self._feed(part)
            elif self._is_stream or self._count != 1:  # a snapshot is one
                return None
            else:
                self._fetch_again()
        captured = time.monotonic()
        file = self._found.popleft()
        if file is None:
            raise DamagedFrameError("a picture was cut off")
        try:
            return _decode(file), captured
        except Exception as error:
            raise DamagedFrameError(f"a picture arrived damaged: {error}") from error

    def _receive(self) -> bytes:
        try:
            return bytes(self._response.read1(_PART))
        except TimeoutError:
            raise TimeoutError(f"nothing came for {self._timeouts.read:g} s") from None
        except http.client.HTTPException as error:
            raise OSError(f"the answer ended early: {type(error).__name__}") from None

    def _start(self) -> bytes:
        """Receive the first bytes of the answer, enough to tell what it is."""
        first = self._receive()
        while 0 < len(first) < _SIGNATURE and (more := self._receive()):
            first += more
        return first

    def _is_file(self, kind: str, start: bytes) -> bool:
        """Whether the answer is one picture, and nothing comes behind it but what belongs to it.

        A JPEG file may have more pictures behind the first (MPO), as a stream has.
        """
        if self._is_stream:
            return False
        length = self._response.headers.get("Content-Length", "")
        has_end = length.isdecimal() and int(length[:20]) <= _MOST_BYTES
        if start.startswith(JPEG_START):
            return has_end
        is_picture = re.match(_PICTURES, start, re.DOTALL) is not None
        return (has_end and is_picture) or (kind.startswith("image/") and kind != "image/jpeg")

    def _take(self, first: bytes) -> None:
        """Receive the rest of a file."""
        self._found.append(first + self._response.read(_MOST_BYTES + 1 - len(first)))
        self._count = 1

    def _feed(self, part: bytes) -> None:
        files = [*self._parser.feed(part)]
        self._count += len(files)
        self._found += files

    def _fetch_again(self) -> None:
        """Fetch the next snapshot."""
        self._response.close()
        self._interrupted.wait(self._fetched + _SNAPSHOT_EVERY - time.monotonic())
        self._check_open()
        self._count = 0
        kind = self._request()
        first = self._start()
        if self._is_file(kind, first):
            self._take(first)
        else:
            self._feed(first)

    def _request(self) -> str:
        """Send the request; return the media type of the response, in lower case."""
        self._fetched = time.monotonic()
        self._response = _get(self._url, self._timeouts, self._lines)
        with suppress(AttributeError):
            self._response.fp.raw._sock.settimeout(self._timeouts.read)
        encoding = str(self._response.headers.get("Content-Encoding", "identity")).lower()
        if encoding != "identity":
            raise OSError(f"the camera sends Content-Encoding {encoding[:20]}; switch it off there")
        return str(self._response.headers.get_content_type()).lower()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the source is closed")

    def _interrupt(self) -> None:
        self._interrupted.set()
        if self._video is not None:
            self._video.close()
        self._lines.cut()  # ends a request or a read in another thread

    def _release(self) -> None:
        if self._video is not None:
            self._video.close()
        response, self._response = self._response, None
        if response is not None:
            with suppress(OSError):
                response.close()


class HttpFile(VideoSource):
    """A video file at an `http://` or `https://` URL, which ends."""

    def __init__(self, url: str, timeouts: Timeouts) -> None:
        super().__init__(url, False, timeouts)
        self._lines = Lines()

    def _open(self) -> None:
        # Nobody watches a file: `timeouts.open` holds for all parts of the answer together.
        timer = threading.Timer(self._timeouts.open, self._lines.cut)
        timer.start()
        try:
            with _get(self._url, self._timeouts, self._lines) as response:
                self._url = with_login(response.geturl(), self._url)
        finally:
            timer.cancel()
        super()._open()

    def _interrupt(self) -> None:
        self._lines.cut()


class _SameHostFiles:
    """Opens a playlist and what it names on the same host, for FFmpeg."""

    def __init__(self, url: str, login: str, timeouts: Timeouts, lines: Lines) -> None:
        self._url, self._login, self._timeouts, self._lines = url, login, timeouts, lines

    def __call__(self, url: str, flags: int, options: Any) -> Any:
        found = resolve(self._url, url, sent="the playlist names")
        return _Arriving(_get(with_login(found, self._login), self._timeouts, self._lines))


class _Arriving:
    """A response, for FFmpeg: `read` returns what has come, and does not wait for all of it.

    FFmpeg looks between two reads whether it should give up.
    """

    def __init__(self, response: Any) -> None:
        self._response = response

    def read(self, count: int) -> bytes:
        return bytes(self._response.read1(count))

    def close(self) -> None:
        self._response.close()


def _get(url: str, timeouts: Timeouts, lines: Lines) -> Any:
    """Send a GET request that follows redirects on the same host only; return the response.

    Each part of it may take `timeouts.open`; all together end when `lines` are cut.

    Raises:
        OSError: if there is none, its status is an error, or it redirects elsewhere.
    """
    try:
        request = urllib.request.Request(without_login(url))
        return _opener(url, lines).open(request, timeout=timeouts.open)
    except TimeoutError:
        raise TimeoutError(f"no answer within {timeouts.open:g} s") from None
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"HTTP status {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise TimeoutError(f"no answer within {timeouts.open:g} s") from None
        raise OSError(getattr(error.reason, "strerror", None) or str(error.reason)) from None
    except http.client.HTTPException as error:
        raise OSError(f"the answer is not HTTP: {type(error).__name__} {error}") from None
    except ValueError as error:  # of the URL in a redirect
        raise OSError(f"the camera redirects to an invalid URL: {error}") from None


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects on the same host only, from HTTPS to HTTPS only."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, url: str
    ) -> Any:
        try:
            resolve(req.full_url, url)
        except OSError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, url)


def _opener(url: str, lines: Lines) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SameHost(), *lines.handlers(), *login_handlers(url))


def _shows_jpegs(start: bytes) -> bool:
    return JPEG_START in start or start.lstrip().startswith(b"--")


def _decode(file: bytes) -> NDArray[np.uint8]:
    inspect(file)
    with open_picture(io.BytesIO(file), PHOTOS) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width}×{picture.height} pixels exceed {MAX_PIXELS}")
        check_single(picture)
        return to_rgb(picture)
