"""The `Sink` protocol."""

from __future__ import annotations

from typing import Protocol

from rightbatch._serve.sinks.line import Line


class ReaderGoneError(Exception):
    """The reader of a stream has gone: the process at the other end of the pipe has ended."""


class Sink(Protocol):
    """Receives lines, on a thread of its own.

    `close` may be called by another thread during `put`, which must then return soon, and more than
    once. A sink with a queue of its own may have an attribute `error: str | None`, the reason why
    it sends nothing now.
    """

    name: str

    def put(self, line: Line) -> None:
        """Write a line; may block.

        Raises:
            ReaderGoneError: if later lines cannot be written either.
            Exception: any other, if this line is lost.
        """

    def close(self, timeout: float = 5.0) -> int:
        """Wait at most `timeout` seconds for pending lines; return how many did not arrive."""
