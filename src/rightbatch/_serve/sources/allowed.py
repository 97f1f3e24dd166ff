"""Which sources the page may open: what the one who started the server named.

Whoever has the page could otherwise make the server read any file and call any host of its network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import url2pathname

from rightbatch._errors import UsageError
from rightbatch._serve.sources.open import LIVE_SCHEMES, is_webcam

MOST_SOURCES = 256
"""Sources of a server to which the page adds no more: each has threads and a connection."""

SCHEMES = (*LIVE_SCHEMES, "webcam")
_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443}


@dataclass(frozen=True)
class _Address:
    """A URL without its password, to compare."""

    scheme: str
    host: str
    port: int | None
    path: str
    query: str

    @classmethod
    def of(cls, parts: SplitResult) -> _Address:
        scheme = parts.scheme.lower()
        port = parts.port or _PORTS.get(scheme)
        return cls(scheme, (parts.hostname or "").lower(), port, parts.path, parts.query)

    def is_below(self, other: _Address) -> bool:
        if (self.scheme, self.host, self.port) != (other.scheme, other.host, other.port):
            return False
        if other.query:  # one picture of a program, whose others may do anything
            return (self.path, self.query) == (other.path, other.query)
        # Servers decode the path, and some take \ for / and ignore what follows a semicolon.
        if any(part.partition(";")[0] == ".." for part in re.split(r"[/\\]", unquote(self.path))):
            return False
        folder = other.path.rstrip("/")
        return self.path in (other.path, folder) or self.path.startswith(folder + "/")


class AllowedSources:
    """A list of folders, files, schemes (`rtsp:`) and URLs (`http://hall/`, with what is below).

    A URL with a query is allowed alone.

    Raises:
        UsageError: if an entry is none of these.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._schemes: set[str] = set()
        self._addresses: list[_Address] = []
        self._paths: list[Path] = []
        self._named: set[str] = set()
        for entry in entries:
            self._add(str(entry))

    def name(self, source: Any) -> None:
        """Allow one source that was named when the server was started, again."""
        if isinstance(source, str | int | Path):
            self._named.add(_key(source))

    def check(self, source: str | int) -> None:
        """Check that the page may open a source.

        Raises:
            UsageError: if it may not.
        """
        if _key(source) in self._named or self._is_allowed(source):
            return
        raise UsageError(
            f"the page may not open this source; to allow it, start the server with "
            f"--allow-source {_suggestion(source)}"
        )

    def _add(self, entry: str) -> None:
        scheme = re.fullmatch(r"([a-z]+):?(//)?", entry, re.IGNORECASE)
        if scheme is not None and scheme[1].lower() in SCHEMES:
            self._schemes.add(scheme[1].lower())
        elif "://" in entry:
            try:
                address = _Address.of(urlsplit(entry))
            except ValueError:
                raise UsageError(f"--allow-source {entry}: the URL has no valid host") from None
            if address.scheme not in SCHEMES or not address.host:
                raise UsageError(
                    f"--allow-source {entry}: expected a URL with a host and one of "
                    f"{', '.join(SCHEMES)}"
                )
            self._addresses.append(address)
        else:
            path = Path(entry).expanduser()
            if not _exists(path):
                raise UsageError(
                    f"--allow-source {entry}: there is no such folder, and it is not a scheme; the "
                    f"schemes are {', '.join(SCHEMES)}"
                )
            self._paths.append(path.resolve())

    def _is_allowed(self, source: str | int) -> bool:
        text = str(source)
        if is_webcam(text):
            return "webcam" in self._schemes
        if "://" in text:
            try:
                parts = urlsplit(text)
                address = _Address.of(parts)
            except ValueError:
                return False
            if address.scheme == "file":
                return self._is_path_allowed(Path(url2pathname(parts.path)))
            if address.scheme in self._schemes:
                return True
            return any(address.is_below(allowed) for allowed in self._addresses)
        return self._is_path_allowed(Path(text))

    def _is_path_allowed(self, path: Path) -> bool:
        try:
            found = path.resolve()  # links lead out of a folder
        except (OSError, ValueError, RuntimeError):
            return False
        return any(found.is_relative_to(allowed) for allowed in self._paths)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no permission, or a name that is too long
        return False


def _key(source: str | int | Path) -> str:
    text = str(source)
    if "://" in text or is_webcam(text):
        return text.removeprefix("webcam:")
    try:
        return str(Path(text).resolve())
    except (OSError, ValueError, RuntimeError):
        return text


def _suggestion(source: str | int) -> str:
    text = str(source)
    if is_webcam(text):
        return "webcam:"
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    return f"{scheme}:" if scheme in SCHEMES else "FOLDER"
