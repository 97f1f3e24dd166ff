"""Where results go: a line for every frame, written by threads that delay neither the model nor
each other."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeGuard

from rightbatch._errors import UsageError
from rightbatch._serve.frames import said
from rightbatch._serve.models import plain

_KNOWN = "a file, - (standard output), mqtt://HOST/TOPIC, mqtts://, a text stream or a function"
_GRACE = 0.25  # seconds for a sink that used all of its time to say so


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

    Raises:
        UsageError: if the file cannot be written.
    """

    def __init__(self, to: Path | TextIO) -> None:
        self._stream = None if isinstance(to, Path) else to
        self._file = _opened(to) if isinstance(to, Path) else None
        # Whoever wrote there before may have been killed in the middle of a line.
        self._is_torn = isinstance(to, Path) and _is_torn(to)
        self.name = str(to if isinstance(to, Path) else getattr(to, "name", type(to).__name__))

    def put(self, line: Line) -> None:
        text = line.to_json() + "\n"
        if self._file is not None:
            self._put(self._file, text)
        elif self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except BrokenPipeError as error:
                raise NobodyReads(said(error)) from error

    def close(self, timeout: float = 5.0) -> int:
        if self._file is not None:
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


def open_sink(to: str | Path | TextIO | Callable[[Line], object]) -> Sink:
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
        from rightbatch._serve.mqtt import Mqtt

        return Mqtt(to)
    if isinstance(to, str | Path):
        return Lines(Path(to).expanduser())
    if _is_stream(to):
        return Lines(to)
    if callable(to):
        return Callback(to)
    raise UsageError(f"results go to {_KNOWN}; got {type(to).__name__}")


def _is_stream(to: object) -> TypeGuard[TextIO]:
    return hasattr(to, "write")


class Writer:
    """Gives every line to every sink. Each sink has a queue and a thread: none waits for another.

    Args:
        sinks: closed by `close`.
        depth: lines that may wait for a sink.
        on_broken: called once, on a sink's thread, when nobody reads a stream any more.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        depth: int = 1000,
        on_broken: Callable[[], object] = lambda: None,
    ) -> None:
        self._changed = threading.Condition()
        self._on_broken = on_broken
        self._was_broken = False
        self._outlets = [_Outlet(sink, self._changed, depth, self._broken) for sink in sinks]
        for outlet in self._outlets:
            outlet.thread.start()

    def put(self, line: Line, patient: bool) -> None:
        """Have a line written, soon; never blocks.

        One that is not patient is left out where it finds no room. A patient one is always taken:
        its reader waits for room before it brings the next.
        """
        with self._changed:
            for outlet in self._outlets:
                outlet.take(line, patient)

    def wait_for_room(self, timeout: float | None = None) -> bool:
        """Wait until every sink has room, or it closes; False where the time was over first."""
        with self._changed:
            return self._changed.wait_for(
                lambda: all(outlet.has_room for outlet in self._outlets), timeout
            )

    @property
    def is_idle(self) -> bool:
        """Whether every line is written."""
        with self._changed:
            return not any(outlet.is_busy for outlet in self._outlets)

    def close(self, timeout: float = 5.0) -> int:
        """Write what waits, for at most so many seconds; how many lines are left, of the sink that
        has most."""
        until = time.monotonic() + timeout
        with self._changed:
            for outlet in self._outlets:
                outlet.until = min(until, outlet.until or until)
            self._changed.notify_all()
        return max([outlet.end() for outlet in self._outlets], default=0)

    def status(self) -> dict[str, Any]:
        """`lines` reached every sink; `left_out` is how often one could not be given to a sink;
        `error` is what went wrong last, or what holds a sink up now."""
        with self._changed:
            errors = [outlet.trouble for outlet in self._outlets]
            return {
                "lines": min((outlet.written for outlet in self._outlets), default=0),
                "left_out": sum(outlet.left_out for outlet in self._outlets),
                "error": next((error for error in errors if error is not None), None),
            }

    def _broken(self) -> None:
        with self._changed:
            is_first = not self._was_broken
            self._was_broken = True
        if is_first:
            self._on_broken()


class _Outlet:
    """A sink, what waits for it, and the thread that writes it."""

    def __init__(
        self,
        sink: Sink,
        changed: threading.Condition,
        depth: int,
        on_broken: Callable[[], None],
    ) -> None:
        self.written = self.left_out = 0
        self.until: float | None = None  # when it is to have ended, once it closes
        self._sink = sink
        self._changed = changed
        self._depth = depth
        self._on_broken = on_broken
        self._waiting: deque[Line] = deque()  # the first one is being written
        self._undelivered = 0
        self._is_broken = False
        self._error: str | None = None
        self.thread = threading.Thread(target=self._run, name=f"writer {sink.name}", daemon=True)

    @property
    def has_room(self) -> bool:
        return self.until is not None or self._is_broken or len(self._waiting) < self._depth

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting)

    @property
    def trouble(self) -> str | None:
        now = getattr(self._sink, "error", None)
        return self._error if now is None else f"{self._sink.name}: {now}"

    def take(self, line: Line, patient: bool) -> None:
        is_over = self.until is not None or self._is_broken
        if is_over or not (patient or self.has_room):
            self.left_out += 1
            return
        self._waiting.append(line)
        if len(self._waiting) == 1:
            self._changed.notify_all()

    def end(self) -> int:
        """Wait for the thread until its time is over; the lines that are left."""
        assert self.until is not None
        if self.thread is not threading.current_thread():
            self.thread.join(max(0.0, self.until - time.monotonic()) + _GRACE)
            if self.thread.is_alive():  # in `put`, which ends that way
                self._close_sink(0.0)
        with self._changed:
            return len(self._waiting) + self._undelivered

    def _run(self) -> None:
        while (line := self._next()) is not None:
            error: BaseException | None = None
            try:
                self._sink.put(line)
            except BaseException as raised:  # a user's function may raise SystemExit
                error = raised
            with self._changed:
                self._note(error)
            if isinstance(error, NobodyReads):
                self._on_broken()
        assert self.until is not None
        self._close_sink(max(0.0, self.until - time.monotonic()))

    def _next(self) -> Line | None:
        """The line to write; None once it is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self.until is not None)
            is_late = self.until is not None and time.monotonic() >= self.until
            return None if is_late or not self._waiting else self._waiting[0]

    def _note(self, error: BaseException | None) -> None:
        self._waiting.popleft()
        if error is None:
            self.written += 1
        else:
            self.left_out += 1
            self._error = f"{self._sink.name}: {said(error)}"
        if isinstance(error, NobodyReads):
            self._is_broken = True
            self.left_out += len(self._waiting)
            self._waiting.clear()
        if self.has_room:
            self._changed.notify_all()

    def _close_sink(self, timeout: float) -> None:
        try:
            undelivered = self._sink.close(timeout)
        except Exception as error:
            with self._changed:
                self._error = f"{self._sink.name}: {said(error)}"
        else:
            with self._changed:
                self._undelivered = undelivered or 0  # a user's sink may return nothing
