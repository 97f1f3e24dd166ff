"""Where results go: a line for each frame, to a file, a stream, a function or who iterates."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeGuard

from rightbatch._errors import UsageError
from rightbatch._serve.models import plain
from rightbatch._serve.sources.frames import said

_KNOWN = "a file, - (standard output), mqtt://HOST/TOPIC, mqtts://, a text stream or a function"


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one frame.

    `captured` is Unix time in seconds, `reason` why its batch had its size, `error` why there is no
    result.
    """

    source: str
    frame: int
    captured: float
    latency_ms: float | None
    batch_size: int | None
    result: Any
    reason: str | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "frame": self.frame,
            "captured": round(self.captured, 6),
            "latency_ms": None if self.latency_ms is None else round(self.latency_ms, 3),
            "batch_size": self.batch_size,
            "result": self.result,
            "reason": self.reason,
            "error": self.error,
        }

    def to_json(self) -> str:
        """One line of JSON, whatever the result is.

        NaN and infinity, which JSON does not have, become null. A result that it cannot hold is
        left out, and `error` says so: the frame has its line all the same.
        """
        try:
            text = json.dumps(self.to_dict(), default=plain)
            try:
                return json.dumps(self.to_dict(), default=plain, allow_nan=False)
            except ValueError:
                return json.dumps(json.loads(text, parse_constant=lambda _: None))
        except (TypeError, ValueError, RecursionError) as error:
            return replace(self, result=None, error=said(error)).to_json()


class NobodyReads(Exception):
    """A sink's reader has gone for good: what was piped into has ended."""


class Sink(Protocol):
    """Takes lines, on a thread of its own.

    `close` may be called by another thread while `put` is under way, which then ends soon, and
    again. A sink that queues by itself may have an `error: str | None`, what holds it up now.
    """

    name: str

    def put(self, line: Line) -> None:
        """Write a line; may block.

        Raises:
            NobodyReads: if there is no use in any other.
            Exception: anything else, if this one is lost.
        """

    def close(self, timeout: float = 5.0) -> int:
        """Wait for what is under way, at most so many seconds; the lines that were taken and did
        not arrive."""


class Lines:
    """JSON lines at the end of a file, or on a stream, each there as soon as it comes.

    A raw stream is better than a buffered one, whose lock a reader that has stopped keeps for ever.

    Raises:
        UsageError: if the file cannot be written.
    """

    def __init__(self, to: Path | TextIO | FileIO) -> None:
        self._is_ours = isinstance(to, Path)
        self._file = _opened(to) if isinstance(to, Path) else to if isinstance(to, FileIO) else None
        self._stream = None if isinstance(to, Path | FileIO) else to
        # Whoever wrote there before may have been killed in the middle of a line.
        self._is_torn = isinstance(to, Path) and _is_torn(to)
        self.name = str(to if isinstance(to, Path) else getattr(to, "name", type(to).__name__))

    def put(self, line: Line) -> None:
        text = line.to_json() + "\n"
        if self._file is not None:
            try:
                self._put(self._file, text)
            except BrokenPipeError as error:
                if self._is_ours:
                    raise
                raise NobodyReads(said(error)) from error
        elif self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except BrokenPipeError as error:
                raise NobodyReads(said(error)) from error

    def close(self, timeout: float = 5.0) -> int:
        if self._file is not None and self._is_ours:
            self._file.close()
        return 0

    def _put(self, file: FileIO, text: str) -> None:
        """A full disk may have taken half of the line before: that one ends there."""
        data = memoryview((b"\n" if self._is_torn else b"") + text.encode())
        while data:
            data = data[file.write(data) :]
            self._is_torn = len(data) > 0


def _opened(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab", buffering=0)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {said(error)}") from None


def _is_torn(path: Path) -> bool:
    """Whether its last line has no end."""
    try:
        with path.open("rb") as file:
            file.seek(-1, SEEK_END)
            return file.read(1) != b"\n"
    except OSError:  # empty, or a pipe
        return False


class Callback:
    """A function that is called with every `Line`."""

    def __init__(self, function: Callable[[Line], object]) -> None:
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self._function = function

    def put(self, line: Line) -> None:
        self._function(line)

    def close(self, timeout: float = 5.0) -> int:
        return 0


def open_sink(to: str | Path | TextIO | FileIO | Callable[[Line], object]) -> Sink:
    """What `to` means: a file, `"-"`, an MQTT broker, a text stream or a function.

    Raises:
        UsageError: if nothing can be written there.
        MissingExtraError: if what writes there is not installed.
    """
    if to == "-":
        return Lines(sys.stdout)
    if isinstance(to, str) and "://" in to:
        scheme = to.partition("://")[0].lower()
        if scheme not in ("mqtt", "mqtts"):
            raise UsageError(f"results do not go to {scheme}://; they go to {_KNOWN}")
        from rightbatch._serve.sinks.mqtt import Mqtt

        return Mqtt(to)
    if isinstance(to, str | Path):
        return Lines(Path(to).expanduser())
    if _is_stream(to):
        return Lines(to)
    if callable(to):
        return Callback(to)
    raise UsageError(f"results go to {_KNOWN}; got {type(to).__name__}")


def _is_stream(to: object) -> TypeGuard[TextIO | FileIO]:
    return hasattr(to, "write")


class Handover:
    """A sink that hands lines over to a thread that asks for them."""

    name = "iteration"

    def __init__(self) -> None:
        self._lines: deque[Line] = deque()
        self._changed = threading.Condition()
        self._closing = False

    def put(self, line: Line) -> None:
        """Waits until the line before is taken, unless it closes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines or self._closing)
            self._lines.append(line)
            self._changed.notify_all()

    def get(self, timeout: float) -> Line | None:
        """The next line; None if none came."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._lines, timeout):
                return None
            self._changed.notify_all()
            return self._lines.popleft()

    def close(self, timeout: float = 5.0) -> int:
        """Lets go of whoever waits; what was not asked for can still be."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        return 0
