"""Open the source that a URL, a path, a number or an iterable names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.redaction import redact
from rightbatch._serve.sources.frames import SourceSpec
from rightbatch._serve.sources.pictures import PICTURES, IterableSource, PictureSource, pictures_in
from rightbatch._serve.sources.video import VideoSource, WebcamSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "srt", "udp", "rtp")
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
        if re.fullmatch(r"(webcam:)?\d+", source):
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


def _webcam(number: int) -> SourceSpec:
    _require("av")
    return SourceSpec(f"webcam{number}", f"webcam:{number}", True, partial(WebcamSource, number))


def _url(text: str) -> SourceSpec:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError if invalid
        if re.search(r"\s", text):
            raise ValueError
    except ValueError:
        raise UsageError(
            "the source's URL has no valid host and port; in a password, encode / ? # @ : and "
            "space as %2F %3F %23 %40 %3A %20"
        ) from None
    scheme = parts.scheme
    text = scheme + text[len(scheme) :]  # FFmpeg accepts lower-case schemes only
    if scheme == "file":
        from urllib.request import url2pathname

        return _path(Path(url2pathname(parts.path)))
    if scheme not in LIVE_SCHEMES:
        raise UsageError(
            f"unsupported URL scheme {scheme}://; supported: {', '.join(LIVE_SCHEMES)}, files, "
            "folders, webcams and iterables"
        )
    _require("av")
    # A video file on a web server ends; every other URL is treated as a camera.
    is_live = not (scheme in ("http", "https") and Path(parts.path).suffix.lower() in _VIDEOS)
    name = parts.hostname or scheme
    return SourceSpec(name, redact(text), is_live, partial(VideoSource, text, is_live))


def _path(path: Path) -> SourceSpec:
    if not path.exists():
        raise UsageError(f"{path} does not exist; a source is {_KNOWN}")
    name = path.resolve().name if path.is_dir() else path.stem
    if path.is_dir() or path.suffix.lower() in PICTURES:
        files = pictures_in(path)
        if not files:
            formats = ", ".join(sorted(PICTURES))
            raise UsageError(f"{path} contains no picture; supported formats: {formats}")
        _require("PIL")
        return SourceSpec(name, str(path), False, partial(PictureSource, files))
    _require("av")
    return SourceSpec(name, str(path), False, partial(VideoSource, str(path), False))


def _require(module: str) -> None:
    if find_spec(module) is None:
        raise MissingExtraError({"av": "PyAV", "PIL": "Pillow"}[module], "serve")
