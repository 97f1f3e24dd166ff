"""Sinks inside this process: a function, and a thread that iterates."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from rightbatch._serve.sinks.line import Line


class CallbackSink:
    """Calls a function with every `Line`."""

    def __init__(self, function: Callable[[Line], object]) -> None:
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self._function = function

    def put(self, line: Line) -> None:
        self._function(line)

    def close(self, timeout: float = 5.0) -> int:
        return 0


class IterationSink:
    """Passes lines to a thread that iterates over them."""

    name = "iteration"

    def __init__(self) -> None:
        self._lines: deque[Line] = deque()
        self._changed = threading.Condition()
        self._closing = False

    def put(self, line: Line) -> None:
        """Wait until the previous line is taken, or the sink closes."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines or self._closing)
            self._lines.append(line)
            self._changed.notify_all()

    def get(self, timeout: float) -> Line | None:
        """Return the next line; None after `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._lines, timeout):
                return None
            self._changed.notify_all()
            return self._lines.popleft()

    def close(self, timeout: float = 5.0) -> int:
        """Release a waiting `put`; remaining lines can still be taken."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        return 0
