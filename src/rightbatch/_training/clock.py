"""Measures the seconds of training, without observers that do not count as training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rightbatch._training.protocol import Observer


class Clock:
    """A stopwatch, read after each step."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def start(self) -> None:
        """Forget the time since the last lap."""
        self._since = time.perf_counter()

    def lap(self, step: int | None = None) -> float:
        """Return the seconds since the last lap.

        If `step` is given (counted from 1), the first step counts as 0 s and the second twice: the
        first one also finds the micro-batch size and starts the device.
        """
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds * {1: 0, 2: 2}.get(step or 0, 1)

    @contextmanager
    def observing(self, observer: Observer) -> Iterator[None]:
        """Exclude the time inside, unless the observer counts as training."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if not observer.counts_as_training:
                self._since += time.perf_counter() - began
