"""Base class of sources that another thread may close during a read."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Connection(ABC):
    """A `FrameSource` that runs one call at a time.

    If `close` finds a call running, that call frees the resources when it returns. Subclasses bound
    the duration of `_open` and `_read`, or end them in `_interrupt`.
    """

    is_live: bool

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._closed = False

    def open(self) -> None:
        """See `FrameSource.open`."""
        try:
            with self._busy:
                if self._closed:
                    raise ValueError("the source is closed")
                self._open()
        except BaseException:
            self.close()
            raise
        if self._closed:
            self.close()

    def read(self) -> tuple[NDArray[np.uint8], float] | None:
        """See `FrameSource.read`."""
        try:
            with self._busy:
                if self._closed:
                    raise ValueError("the source is closed")
                return self._read()
        finally:
            if self._closed:
                self.close()

    def close(self) -> None:
        """See `FrameSource.close`."""
        self._closed = True
        self._interrupt()
        if self._busy.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._busy.release()

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _read(self) -> tuple[NDArray[np.uint8], float] | None: ...

    @abstractmethod
    def _release(self) -> None:
        """Free all resources; may be called twice, and after an `_open` that failed."""

    def _interrupt(self) -> None:  # noqa: B027  optional
        """End the running call, if possible; may be called by any thread, more than once."""
