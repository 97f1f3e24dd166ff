"""Run an ASGI application on a port of this machine, in a thread of its own."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._web.connections import ACCEPTED_AT_ONCE, RareErrors, limited_protocol, limits_here

if TYPE_CHECKING:
    import uvicorn

_START_TIMEOUT = 60.0  # seconds
_STOP_TIMEOUT = 5  # seconds, an integer, for running requests
_BACKLOG = 2048  # connections that wait to be accepted
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class HttpServer:
    """Uvicorn in a thread; signal handlers stay unchanged.

    ::

        http = HttpServer().start(app, "127.0.0.1", 0)
        print(http.url)
        http.stop()

    `extra` and `option` appear in messages: the extra that installs uvicorn, the port's option.
    """

    def __init__(self, extra: str = "serve", option: str = "--http") -> None:
        self._extra, self._option = extra, option
        self._host, self._port = "", 0
        self._listener: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The URL for this machine, without a trailing slash."""
        host = _LOOPBACK_OF.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def bind(self, host: str, port: int) -> HttpServer:
        """Bind the port; `start` then answers there.

        Raises:
            UsageError: if it cannot listen there.
        """
        self._listener = _listen(host, port, self._option)
        self._host, self._port = host, self._listener.getsockname()[1]
        return self

    def start(self, app: Any, host: str = "127.0.0.1", port: int = 8000) -> HttpServer:
        """Start the server and return when it answers.

        Args:
            app: an ASGI application.
            host: bind address; ignored after `bind`.
            port: 0 chooses a free one; ignored after `bind`.

        Raises:
            UsageError: if it cannot listen there.
            MissingExtraError: if uvicorn is not installed.
        """
        try:
            import uvicorn
        except ImportError:
            raise MissingExtraError("uvicorn", self._extra) from None
        if self._listener is None:
            self.bind(host, port)
        listener = self._listener
        assert listener is not None
        config = uvicorn.Config(
            app,
            http=limited_protocol(limits_here()),
            backlog=ACCEPTED_AT_ONCE,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,  # a page polls every second
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_STOP_TIMEOUT,
        )
        self._server = _server(config, listener)
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [listener]},
            name="rightbatch-http",
            daemon=True,
        )
        self._thread.start()
        until = time.monotonic() + _START_TIMEOUT
        try:
            while not self._server.started:
                if not self._thread.is_alive() or time.monotonic() > until:
                    raise UsageError(f"the HTTP server did not start at {self.url}")
                time.sleep(0.005)
        except BaseException:
            self.stop(1.0)
            listener.close()
            raise
        return self

    def stop(self, timeout: float = _STOP_TIMEOUT + 2.0) -> None:
        """Stop accepting requests and finish running ones; may be called twice."""
        if self._server is None or self._thread is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(timeout))
        self._server.should_exit = True
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1.0)


def _server(config: uvicorn.Config, listener: socket.socket) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().set_exception_handler(RareErrors())
            await super().startup(sockets)
            listener.listen(_BACKLOG)  # asyncio set it to how many it accepts at once

    return Server(config)


def _listen(host: str, port: int, option: str = "--http") -> socket.socket:
    if not 0 <= port < 65536:
        raise UsageError(f"the port must be from 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"cannot resolve the bind address {host!r}: {error}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it allows to bind a port in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen at {host} port {port}: {_reason(error, option)}") from None
    return listener


def _reason(error: OSError, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"the port is in use; choose another one with {option} PORT (0: any free port)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"it requires administrator rights; choose a port from 1024 with {option} PORT"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; use 127.0.0.1, or 0.0.0.0 for all interfaces"
    return str(error)
