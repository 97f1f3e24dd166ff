"""Write lines to sinks, on threads that delay neither the model nor each other."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from rightbatch._serve.redaction import describe_error
from rightbatch._serve.sinks.line import Line
from rightbatch._serve.sinks.sink import ReaderGoneError, Sink

_GRACE = 0.25  # extra seconds for a sink's thread to end after its timeout


class Writer:
    """Passes every line to every sink; each sink has its own queue and thread.

    Args:
        sinks: closed by `close`.
        depth: the most lines that wait for a sink.
        on_broken: called once, on a sink's thread, when the reader of a stream has gone.
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
        """Queue a line for every sink; never block.

        A line is left out of a full queue, unless it is `patient`: then its producer waits for room
        before the next one (`wait_for_room`).
        """
        with self._changed:
            for outlet in self._outlets:
                outlet.take(line, patient)

    def wait_for_room(self, timeout: float | None = None) -> bool:
        """Wait until every sink has room or is closing; False after `timeout` seconds."""
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
        """Write queued lines for at most `timeout` seconds; return the most left by any sink."""
        until = time.monotonic() + timeout
        with self._changed:
            for outlet in self._outlets:
                outlet.until = min(until, outlet.until or until)
            self._changed.notify_all()
        return max([outlet.end() for outlet in self._outlets], default=0)

    def status(self) -> dict[str, Any]:
        """Return counts and the last error.

        `lines` reached every sink, `left_out` counts lines that a sink did not get, `error` is the
        last error, or the reason why a sink is blocked now.
        """
        with self._changed:
            errors = [outlet.error for outlet in self._outlets]
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
    """A sink, its queue, and the thread that writes it."""

    def __init__(
        self,
        sink: Sink,
        changed: threading.Condition,
        depth: int,
        on_broken: Callable[[], None],
    ) -> None:
        self.written = self.left_out = 0
        self.until: float | None = None  # time limit of closing; None while it is open
        self._sink = sink
        self._changed = changed
        self._depth = depth
        self._on_broken = on_broken
        self._waiting: deque[Line] = deque()  # the first is being written
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
    def error(self) -> str | None:
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
        """Wait for the thread until the time limit; return the lines that are left."""
        assert self.until is not None
        if self.thread is not threading.current_thread():
            self.thread.join(max(0.0, self.until - time.monotonic()) + _GRACE)
            if self.thread.is_alive():  # closing the sink ends its `put`
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
            if isinstance(error, ReaderGoneError):
                self._on_broken()
        assert self.until is not None
        self._close_sink(max(0.0, self.until - time.monotonic()))

    def _next(self) -> Line | None:
        """Wait for the next line to write; None when closed."""
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
            self._error = f"{self._sink.name}: {describe_error(error)}"
        if isinstance(error, ReaderGoneError):
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
                self._error = f"{self._sink.name}: {describe_error(error)}"
        else:
            with self._changed:
                self._undelivered = undelivered or 0  # a user's sink may return nothing
