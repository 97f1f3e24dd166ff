"""Limits of connections: how many there are, how long they may wait, how long headers may be.

Uvicorn's protocols have none of these. A stranger who opens connections and sends little or nothing
would use up the files that the process may have, and headers without an end its memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MOST = 1024
"""Connections, in all."""
HEADER_BYTES = 32_768
"""Of a request's first line and headers; browsers and proxies stay below 16 KiB."""
WAIT_SECONDS = 10.0
"""For the headers of a request, from the connection or the response before; and for the rest of a
body that is no longer wanted."""
UNREAD_SECONDS = 30.0
"""While a client does not read the response."""
MOST_AHEAD = 16
"""Requests that a connection sends before the first one is answered; each holds memory."""
ACCEPTED_AT_ONCE = 64
"""Connections that asyncio accepts before the first of them is counted."""

_RESERVED_FILES = 64  # for sources, sinks and the model
_LOG_EVERY = 60.0  # seconds
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b'Connection: close\r\nContent-Length: 33\r\n\r\n{"error": "too many connections"}'
)
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\n"
    b'Connection: close\r\nContent-Length: 37\r\n\r\n{"error": "the headers are too long"}'
)


_LOG = logging.getLogger("rightbatch.http")
"""Uvicorn's messages about connections."""


@dataclass
class Limits:
    """The limits of one server, and its connections; used on the event loop only.

    `most` is for all addresses together. One address has half of them, since a single client must
    not shut out the others.
    """

    most: int = MOST
    header_bytes: int = HEADER_BYTES
    wait_seconds: float = WAIT_SECONDS
    unread_seconds: float = UNREAD_SECONDS
    waiting: dict[Any, float] = field(default_factory=dict)  # by protocol; the oldest is first
    of_address: Counter[str] = field(default_factory=Counter)
    count: int = 0

    @property
    def most_of_address(self) -> int:
        """Connections of one address."""
        return max(1, self.most // 2)


def limits_here() -> Limits:
    """Return the limits for this process: half of the files that it may have, at most `MOST`."""
    try:
        import resource
    except ImportError:  # Windows
        return Limits()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return Limits()
    return Limits(most=max(8, min(MOST, (soft - _RESERVED_FILES) // 2)))


def limited_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with limits: httptools where it is installed, else h11."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return _limited_h11(limits)
    return _limited_httptools(limits, HttpToolsProtocol)


class _Limited:
    """Mixed into a protocol of uvicorn's."""

    limits: Limits
    transport: Any
    client: tuple[str, int] | None
    flow: Any
    loop: asyncio.AbstractEventLoop
    cycle: Any
    logger: logging.Logger

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self.logger = _LOG
        limits = self.limits
        self._address = self.client[0] if self.client else ""
        self._header_bytes = 0
        self._paused_since: float | None = None
        self._is_counted = True
        limits.count += 1
        limits.of_address[self._address] += 1
        self._timer = self.loop.call_later(limits.wait_seconds / 4, self._check_time)
        self._wait()
        of_address = limits.of_address[self._address] > limits.most_of_address
        if of_address or limits.count > limits.most:
            self._make_room(self._address if of_address else None)

    def connection_lost(self, error: Exception | None) -> None:
        self._leave()
        super().connection_lost(error)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        if not self._is_counted:  # it was closed to make room
            return
        is_header = self._awaits_headers()
        if is_header:
            self._header_bytes += len(data)
        super().data_received(data)  # type: ignore[misc]
        if not self._is_waiting():
            self.limits.waiting.pop(self, None)
        if not self._awaits_headers():
            self._header_bytes = 0
        elif self._header_bytes > self.limits.header_bytes:
            self._end(_TOO_LARGE)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        if self._is_waiting():  # unless a pipelined request has begun
            self._wait()

    def _awaits_headers(self) -> bool:
        """Whether what comes next belongs to a request's headers, or may do."""
        raise NotImplementedError

    def _is_waiting(self) -> bool:
        """Whether no response is being made."""
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        if self._is_counted:
            self.limits.waiting.pop(self, None)
            self.limits.waiting[self] = time.monotonic()

    def _leave(self) -> None:
        if not self._is_counted:
            return
        self._is_counted = False
        self._timer.cancel()
        limits = self.limits
        limits.waiting.pop(self, None)
        limits.count -= 1
        limits.of_address[self._address] -= 1
        if not limits.of_address[self._address]:
            del limits.of_address[self._address]

    def _make_room(self, address: str | None) -> None:
        """Close the connection that has waited longest, of an address or of all; else this one."""
        for other in self.limits.waiting:
            if other is not self and address in (None, other._address):
                other._end(b"")
                return
        self._end(_BUSY)

    def _check_time(self) -> None:
        limits, now = self.limits, time.monotonic()
        self._timer = self.loop.call_later(limits.wait_seconds / 4, self._check_time)
        since = limits.waiting.get(self)
        if since is not None and now - since >= limits.wait_seconds:
            self._end(b"")
            return
        if not self.flow.write_paused:
            self._paused_since = None
        elif self._paused_since is None:
            self._paused_since = now
        elif now - self._paused_since >= limits.unread_seconds:
            self._end(b"")

    def _end(self, message: bytes) -> None:
        """Close the connection, at once if it has nothing to read."""
        self._leave()
        if message and not self.transport.is_closing():
            self.transport.write(message)
            self.transport.close()
            # A client that does not read the message would keep the connection.
            self.loop.call_later(1.0, self.transport.abort)
        else:
            self.transport.abort()


def _limited_httptools(limits: Limits, base: Any) -> type[asyncio.Protocol]:
    class LimitedHttpTools(_Limited, base):  # type: ignore[misc]
        _in_body = False

        def on_message_begin(self) -> None:
            if len(self.pipeline) >= MOST_AHEAD:
                self._end(b"")
                raise _TooManyAheadError  # ends the parsing, which uvicorn answers with status 400
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._in_body:  # else a trailer, which uvicorn would add to the headers
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._in_body = True
            self._header_bytes = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._header_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_body = False
            super().on_message_complete()

        def send_400_response(self, msg: str) -> None:
            if self._is_counted:  # else it was closed while its data was parsed
                super().send_400_response(msg)

        def _awaits_headers(self) -> bool:
            return True  # also between the parts of a body: sizes of chunks, and trailers

        def _has_fields(self) -> bool:
            return True  # of a body: the sizes and extensions of its chunks, and trailers

    LimitedHttpTools.limits = limits
    return LimitedHttpTools


def _limited_h11(limits: Limits) -> type[asyncio.Protocol]:
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class LimitedH11(_Limited, H11Protocol):
        def _awaits_headers(self) -> bool:
            return self.conn.their_state is h11.IDLE

    LimitedH11.limits = limits
    return LimitedH11


class _TooManyAheadError(Exception):
    """A client sends requests without waiting for responses."""


class RareWarnings(logging.Filter):
    """Lets each warning through once a minute: a stranger may cause thousands in a second."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        message, now = str(record.msg), time.monotonic()  # not its arguments, which are many
        if now < self._next.get(message, 0.0):
            return False
        self._next[message] = now + _LOG_EVERY
        return True


class RareErrors:
    """Handles errors of an event loop: each message is logged once a minute.

    `accept` fails without a pause while the process has no file left.
    """

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message = str(context.get("message"))
        now = time.monotonic()
        if now >= self._next.get(message, 0.0):
            self._next[message] = now + _LOG_EVERY
            exception = context.get("exception")
            logging.getLogger("rightbatch").error(
                "%s: %s",
                message,
                "no exception" if exception is None else exception,
                exc_info=exception,
            )


_LOG.setLevel(logging.WARNING)
_LOG.addFilter(RareWarnings())
