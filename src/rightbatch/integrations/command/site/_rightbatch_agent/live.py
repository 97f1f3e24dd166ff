"""Bytes that malloc has given out, and their peak within a step of a watched training.

The peak of resident memory says little about a small batch: libraries load code in the first steps,
and malloc keeps what was freed. What is in use at a moment is exact, and glibc tells it for all
threads (`mallinfo2`). A thread asks for it again and again during a few steps.
"""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any, Callable

_PAUSE = 0.0002  # seconds between two readings


class _Info(ctypes.Structure):
    """`struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def reader() -> Callable[[], int] | None:
    """Return a function that reads the bytes in use; None without glibc 2.33 or newer."""
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # macOS, musl, Windows
        return None
    function.restype = _Info

    def read() -> int:
        info: Any = function()
        return int(info.uordblks + info.hblkhd)

    return read


class LivePeak:
    """The peak between `start` and `stop`, in bytes above what was in use at `start`."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._is_over = threading.Event()
        self._peak = self.start_bytes = read()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="rightbatch")
        self._thread.start()

    def stop(self) -> int:
        """Return the peak."""
        self._is_over.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        read, is_over = self._read, self._is_over
        while not is_over.is_set():
            self._peak = max(self._peak, read())
            time.sleep(_PAUSE)
