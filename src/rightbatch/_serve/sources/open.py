"""Open the source that a URL, a path, a number or an iterable names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.redaction import describe_error, redact
from rightbatch._serve.sources.frames import SourceSpec
from rightbatch._serve.sources.http import HttpFile, HttpSource
from rightbatch._serve.sources.pictures import PICTURES, IterableSource, PictureSource, pictures_in
from rightbatch._serve.sources.signatures import SIGNATURE_BYTES, refusal_as_film
from rightbatch._serve.sources.video import VideoSource, WebcamSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "srt", "udp", "rtp")
_OPEN_PORTS = ("srt", "udp", "rtp")  # which may have no host: they are listened to
_VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm"))
_KNOWN = (
    "a URL (rtsp://, rtmp://, http://...), a video file, a picture, a folder of pictures, "
    "a webcam (0, 'webcam:1') or an iterable of H×W×3 uint8 arrays"
)


def open_source(source: str | Path | int | Iterable[NDArray[np.uint8]] | SourceSpec) -> SourceSpec:
    """Return the source that `source` names, without connecting; a file must exist.

    Raises:
        UsageError: if it is not a source, or a file does not exist.
        MissingExtraError: if a package that reads it is not installed.
    """
    if isinstance(source, SourceSpec):
        return source
    if isinstance(source, bool):
        raise UsageError(f"a source is {_KNOWN}; got {source}")
    if isinstance(source, int):
        return _webcam(source)
    if isinstance(source, str):
        if is_webcam(source):
            return _webcam(int(source.rpartition(":")[2]))
        if "://" in source:
            return _url(source)
    if isinstance(source, str | Path):
        return _path(Path(source))
    if isinstance(source, Iterable):
        name = getattr(source, "__name__", type(source).__name__)
        url = f"Python {type(source).__name__}"
        return SourceSpec(name, url, False, partial(IterableSource, source))
    raise UsageError(f"a source is {_KNOWN}; got {type(source).__name__}")


def is_webcam(text: str) -> bool:
    """Whether a source is a webcam's number, as `1` or `webcam:1`."""
    return re.fullmatch(r"(webcam:)?\d{1,4}", text) is not None


def _webcam(number: int) -> SourceSpec:
    _require("av")
    return SourceSpec(f"webcam{number}", f"webcam:{number}", True, partial(WebcamSource, number))


def _url(text: str) -> SourceSpec:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError if invalid
        if re.search(r"\s", text):
            raise ValueError
        if "@" in parts.path + parts.query + parts.fragment:  # rtsp://admin:12#3@camera/
            raise ValueError
        if not parts.hostname and parts.scheme in LIVE_SCHEMES and parts.scheme not in _OPEN_PORTS:
            raise ValueError
    except ValueError:
        raise UsageError(
            "the source's URL has no valid host and port, or an @ behind them; in a password, "
            "encode / ? # @ : and space as %2F %3F %23 %40 %3A %20, and an @ behind the host as %40"
        ) from None
    scheme = parts.scheme
    text = scheme + text[len(scheme) :]  # FFmpeg accepts lower-case schemes only
    if scheme == "file":
        from urllib.request import url2pathname

        if parts.hostname not in (None, "localhost"):
            raise UsageError(f"file://{parts.hostname}/: files of other machines are not read")
        return _path(Path(url2pathname(parts.path)))
    if scheme not in LIVE_SCHEMES:
        raise UsageError(
            f"unsupported URL scheme {scheme}://; supported: {', '.join(LIVE_SCHEMES)}, files, "
            "folders, webcams and iterables"
        )
    _require("av")
    if scheme == "srt" and not _has_srt():
        raise UsageError(
            "srt://: the FFmpeg of the installed PyAV has no SRT; relay it as RTSP (MediaMTX, or "
            "ffmpeg -i srt://... -c copy -f rtsp rtsp://...), or build PyAV with an FFmpeg that "
            "has libsrt"
        )
    # A video file on a web server ends; every other URL is treated as a camera.
    is_live = not (scheme in ("http", "https") and Path(parts.path).suffix.lower() in _VIDEOS)
    name = parts.hostname or scheme
    if scheme in ("http", "https"):
        _require("PIL")
        kind = HttpSource if is_live else HttpFile
        return SourceSpec(name, redact(text), is_live, partial(kind, text))
    return SourceSpec(name, redact(text), is_live, partial(VideoSource, text, is_live))


@cache
def _has_srt() -> bool:
    import av

    try:
        av.open("srt://", timeout=0.1)  # without a port: refused before it connects
    except av.error.ProtocolNotFoundError:
        return False
    except Exception:
        return True
    return True


def _path(path: Path) -> SourceSpec:
    try:
        return _existing(path)
    except OSError as error:  # no permission, or a name that is too long
        raise UsageError(f"{str(path)[:200]} cannot be read: {describe_error(error)}") from None


def _existing(path: Path) -> SourceSpec:
    if not path.exists():
        raise UsageError(f"{path} does not exist; a source is {_KNOWN}")
    name = path.resolve().name if path.is_dir() else path.stem
    if path.is_dir() or path.suffix.lower() in PICTURES:
        files = pictures_in(path)
        if not (path.is_dir() or path.is_file()):  # a pipe would be waited for
            raise UsageError(f"{path} is not a file")
        if not files:
            formats = ", ".join(sorted(PICTURES))
            raise UsageError(f"{path} contains no picture; supported formats: {formats}")
        _require("PIL")
        return SourceSpec(name, str(path), False, partial(PictureSource, files))
    _require("av")
    if path.is_file():
        with suppress(OSError), path.open("rb") as file:
            if (reason := refusal_as_film(file.read(SIGNATURE_BYTES), path.suffix)) is not None:
                raise UsageError(f"{path}: {reason}")
    return SourceSpec(name, str(path), False, partial(VideoSource, str(path), False))


def _require(module: str) -> None:
    if find_spec(module) is None:
        raise MissingExtraError({"av": "PyAV", "PIL": "Pillow"}[module], "serve")
