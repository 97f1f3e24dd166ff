"""Frames, what they come from, and how a source is named: the words that all sources share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from rightbatch._errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "srt", "udp", "rtp")
PICTURES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
_FILMS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"))
_KNOWN = (
    "a URL (rtsp://, rtmp://, http://...), a video file, a picture, a folder of pictures, "
    "a webcam (0, 'webcam:1') or an iterable of H×W×3 uint8 arrays"
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture that a source really took; `image` is H×W×3, RGB, contiguous.

    `number` counts within the source, over all of its connections; what a file or a folder has and
    could not be read has its number, too. `captured` is
    `time.monotonic()` when the frame's packet arrived, before it was decoded.
    """

    image: NDArray[np.uint8]
    number: int
    captured: float


class Stopped(Exception):
    """Nobody takes frames any more: the source is to end."""


class BrokenFrame(Exception):
    """One frame is lost, what comes after it is not: read on."""


class FrameSource(Protocol):
    """One connection to a source, made anew for each attempt.

    `open` and `read` are called by one thread. `close` may be called by another one meanwhile,
    again, and before `open`; it does not wait for a `read` that hangs.
    """

    is_live: bool

    def open(self) -> None:
        """Connect; raises if that fails, within a bounded time."""

    def read(self) -> tuple[NDArray[np.uint8], float] | None:
        """The next image and when it was captured; None at the end.

        Raises:
            BrokenFrame: if one frame is lost, and only that.
            Exception: anything else, if the source is broken.
        """

    def close(self) -> None:
        """Let go of everything; a `read` that is under way may still return or raise."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a source may take to answer at all, and to bring what follows."""

    open: float = 5.0
    read: float = 3.0


@dataclass(frozen=True)
class SourceSpec:
    """Where frames come from, before any connection.

    `name` is short, `url` shows no password; `make` returns a connection that is not open yet.
    """

    name: str
    url: str
    is_live: bool
    make: Callable[[Timeouts], FrameSource] = field(repr=False)  # it holds the password


def open_source(source: str | Path | int | Iterable[NDArray[np.uint8]] | SourceSpec) -> SourceSpec:
    """What `source` means; nothing is opened yet. A camera may be absent, a file may not.

    Raises:
        UsageError: if it can be no source.
        MissingExtraError: if what reads it is not installed.
    """
    if isinstance(source, SourceSpec):
        return source
    if isinstance(source, bool):
        raise UsageError(f"a source is {_KNOWN}; got {source}")
    if isinstance(source, int):
        return _webcam(source)
    if isinstance(source, str):
        if re.fullmatch(r"(webcam:)?\d+", source):
            return _webcam(int(source.rpartition(":")[2]))
        if "://" in source:
            return _url(source)
    if isinstance(source, str | Path):
        return _path(Path(source))
    if isinstance(source, Iterable):
        from rightbatch._serve.sources.pictures import Iterated

        name = getattr(source, "__name__", type(source).__name__)
        url = f"Python {type(source).__name__}"
        return SourceSpec(name, url, False, partial(Iterated, source))
    raise UsageError(f"a source is {_KNOWN}; got {type(source).__name__}")


def redact(text: str) -> str:
    """`text` without the passwords of URLs in it: what is before an @, and what is named so.

    Rather too much is hidden than too little: a password may hold any character.
    """
    text = re.sub(r"(\w://)\S*@", r"\1***@", text)
    return re.sub(r"(?i)(\w*(?:pass|pwd|pw|token|key|auth|secret|sig)\w*=)[^&\s]+", r"\1***", text)


def said(error: BaseException) -> str:
    """What an error says, in a line without passwords."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact(" ".join(str(text).split()))


def _webcam(number: int) -> SourceSpec:
    from rightbatch._serve.sources.video import Webcam

    _needs("av")
    return SourceSpec(f"webcam{number}", f"webcam:{number}", True, partial(Webcam, number))


def _url(text: str) -> SourceSpec:
    try:
        parts = urlsplit(text)
        _ = parts.port  # the part that raises
        if re.search(r"\s", text):
            raise ValueError
    except ValueError:
        raise UsageError(
            "a source's URL has no valid host and port; a password with one of / ? # @ : or a "
            "space in it has to be written with %2F %3F %23 %40 %3A %20"
        ) from None
    scheme = parts.scheme
    text = scheme + text[len(scheme) :]  # FFmpeg knows it in lower case only
    if scheme == "file":
        from urllib.request import url2pathname

        return _path(Path(url2pathname(parts.path)))
    if scheme not in LIVE_SCHEMES:
        raise UsageError(
            f"no source of the kind {scheme}://; known are {', '.join(LIVE_SCHEMES)}, files, "
            "folders, webcams and iterables"
        )
    from rightbatch._serve.sources.video import Video

    _needs("av")
    # What lies on a server as a file has an end, as a file has; all else is taken for a camera.
    is_live = not (scheme in ("http", "https") and Path(parts.path).suffix.lower() in _FILMS)
    name = parts.hostname or scheme
    return SourceSpec(name, redact(text), is_live, partial(Video, text, is_live))


def _path(path: Path) -> SourceSpec:
    from rightbatch._serve.sources.pictures import Pictures
    from rightbatch._serve.sources.video import Video

    if not path.exists():
        raise UsageError(f"there is no {path}; a source is {_KNOWN}")
    name = path.resolve().name if path.is_dir() else path.stem
    if path.is_dir() or path.suffix.lower() in PICTURES:
        files = pictures_in(path)
        if not files:
            raise UsageError(f"no picture is in {path}; known are {', '.join(sorted(PICTURES))}")
        _needs("PIL")
        return SourceSpec(name, str(path), False, partial(Pictures, files))
    _needs("av")
    return SourceSpec(name, str(path), False, partial(Video, str(path), False))


def pictures_in(path: Path) -> tuple[Path, ...]:
    """The pictures of a folder, sorted by name, or the one picture."""
    if not path.is_dir():
        return (path,)
    found = (file for file in path.iterdir() if file.suffix.lower() in PICTURES)
    return tuple(sorted(file for file in found if file.is_file()))


def _needs(module: str) -> None:
    if find_spec(module) is None:
        raise MissingExtraError({"av": "PyAV", "PIL": "Pillow"}[module], "serve")
