"""The `FrameSource` protocol, and the frames that a source brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture that a source really took; `image` is H×W×3, RGB, contiguous.

    `number` counts within the source, over all of its connections; what a file or a folder has and
    could not be read has its number, too. `captured` is
    `time.monotonic()` when the frame's packet arrived, before it was decoded.
    """

    image: NDArray[np.uint8]
    number: int
    captured: float


class SourceStopped(Exception):
    """Nobody takes frames any more: the source is to end."""


class DamagedFrameError(Exception):
    """One frame is lost, what comes after it is not: read on."""


class FrameSource(Protocol):
    """One connection to a source, made anew for each attempt.

    `open` and `read` are called by one thread. `close` may be called by another one meanwhile,
    again, and before `open`; it does not wait for a `read` that hangs.
    """

    is_live: bool

    def open(self) -> None:
        """Connect; raises if that fails, within a bounded time."""

    def read(self) -> tuple[NDArray[np.uint8], float] | None:
        """The next image and when it was captured; None at the end.

        Raises:
            BrokenFrame: if one frame is lost, and only that.
            Exception: anything else, if the source is broken.
        """

    def close(self) -> None:
        """Let go of everything; a `read` that is under way may still return or raise."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds that a source may take to answer at all, and to bring what follows."""

    open: float = 5.0
    read: float = 3.0


@dataclass(frozen=True)
class SourceSpec:
    """Where frames come from, before any connection.

    `name` is short, `url` shows no password; `make` returns a connection that is not open yet.
    """

    name: str
    url: str
    is_live: bool
    make: Callable[[Timeouts], FrameSource] = field(repr=False)  # it holds the password
