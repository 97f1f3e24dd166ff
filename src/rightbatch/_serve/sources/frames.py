"""The `FrameSource` protocol, and the frames that a source brings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from rightbatch._serve.redaction import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a source; `image` is H×W×3 uint8, RGB, contiguous.

    `number` counts within the source, over all connections, including frames of files and folders
    that could not be read. `captured` is `time.monotonic()` when the frame's packet arrived, before
    it was decoded.
    """

    image: NDArray[np.uint8]
    number: int
    captured: float


class SourceStopped(Exception):
    """No more frames are wanted; the source must end."""


class DamagedFrameError(Exception):
    """One frame is lost; later frames can still be read."""


class FrameSource(Protocol):
    """One connection to a source; a new one is made for each attempt.

    `open` and `read` are called by one thread. `close` may be called by another thread at any time,
    more than once, and must not wait for a `read` that hangs.
    """

    is_live: bool

    def open(self) -> None:
        """Connect, or raise, within a bounded time."""

    def read(self) -> tuple[NDArray[np.uint8], float] | None:
        """Return the next image and its capture time; None at the end.

        Raises:
            DamagedFrameError: if this frame is lost, but later ones are not.
            Exception: any other, if the source has failed.
        """

    def close(self) -> None:
        """Free all resources; a `read` that is running may still return or raise."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds to connect, and to read one frame."""

    open: float = 5.0
    read: float = 3.0


@dataclass(frozen=True)
class SourceSpec:
    """A source before any connection.

    `name` is short, `url` contains no password, `make` returns a connection that is not open.
    Control characters of the two and bytes that are not UTF-8 are escaped.
    """

    name: str
    url: str
    is_live: bool
    make: Callable[[Timeouts], FrameSource] = field(repr=False)  # contains the password

    def __post_init__(self) -> None:
        for name in ("name", "url"):
            object.__setattr__(self, name, printable(getattr(self, name)))
