"""SIGTERM and Ctrl-C end serving after what was accepted is finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Signalled:
    """A signal handler that stores the first signal."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._received = threading.Event()

    def wait(self, seconds: float) -> bool:
        return self._received.wait(seconds)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:  # the second signal ends the process at once
            raise KeyboardInterrupt("interrupted twice; accepted frames are not finished")
        self.number = number
        self._received.set()


@contextmanager
def signals() -> Iterator[Signalled]:
    """Handle SIGTERM and Ctrl-C by a clean stop; possible on the main thread only."""
    signalled = Signalled()
    if threading.current_thread() is not threading.main_thread():
        yield signalled
        return
    before = {
        number: signal.signal(number, signalled) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield signalled
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
