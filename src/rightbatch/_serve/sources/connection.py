"""A connection that another thread may close while a read is under way."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Connection(ABC):
    """A `FrameSource` of which only one thread at a time is inside.

    What `close` finds busy is let go by the call that keeps it busy, when that returns. Subclasses
    bound how long `_open` and `_read` take, or end them in `_interrupt`.
    """

    is_live: bool

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._closed = False

    def open(self) -> None:
        """As `FrameSource` says."""
        try:
            with self._busy:
                if self._closed:
                    raise ValueError("it is closed")
                self._open()
        except BaseException:
            self.close()
            raise
        if self._closed:
            self.close()

    def read(self) -> tuple[NDArray[np.uint8], float] | None:
        """As `FrameSource` says."""
        try:
            with self._busy:
                if self._closed:
                    raise ValueError("it is closed")
                return self._read()
        finally:
            if self._closed:
                self.close()

    def close(self) -> None:
        """As `FrameSource` says."""
        self._closed = True
        self._interrupt()
        if self._busy.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._busy.release()

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _read(self) -> tuple[NDArray[np.uint8], float] | None: ...

    @abstractmethod
    def _let_go(self) -> None:
        """Close everything; may be called twice, and after an `_open` that failed."""

    def _interrupt(self) -> None:  # noqa: B027  nothing can be ended, unless a subclass can
        """End the call that is under way, where that can be; called by any thread, often."""
