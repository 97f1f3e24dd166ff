"""The `Sink` protocol."""

from __future__ import annotations

from typing import Protocol

from rightbatch._serve.sinks.line import Line


class ReaderGoneError(Exception):
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
