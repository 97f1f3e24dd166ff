"""An ASGI application on a port of this machine, in a thread of its own."""

from __future__ import annotations

import errno
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import uvicorn

_STARTING = 10.0  # seconds
_FINISHING = 5  # whole seconds for requests that are being answered when it stops
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # is reached from here as


class HttpServer:
    """Uvicorn in a thread; signals stay with the main one.

    ::

        http = HttpServer().start(app, "127.0.0.1", 0)
        print(http.url)
        http.stop()

    `extra` is the one that brings uvicorn, `option` the flag that a port is chosen with.
    """

    def __init__(self, extra: str = "serve", option: str = "--http") -> None:
        self._extra, self._option = extra, option
        self._host, self._port = "", 0
        self._listener: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where it is reached from this machine, without a slash at its end."""
        host = _EVERYWHERE.get(self._host, self._host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def bind(self, host: str, port: int) -> HttpServer:
        """Take the port, before there is an application; `start` answers there.

        Raises:
            UsageError: if it cannot listen there.
        """
        self._listener = _listen(host, port, self._option)
        self._host, self._port = host, self._listener.getsockname()[1]
        return self

    def start(self, app: Any, host: str = "127.0.0.1", port: int = 8000) -> HttpServer:
        """Listen, and return once it answers; where it is bound already, it listens there.

        Args:
            app: an ASGI application.
            host: the name or address to listen at.
            port: 0 takes any that is free.

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
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,  # a page asks every second; what was served is counted elsewhere
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_FINISHING,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run,
            kwargs={"sockets": [listener]},
            name="rightbatch-http",
            daemon=True,
        )
        self._thread.start()
        until = time.monotonic() + _STARTING
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

    def stop(self, timeout: float = _FINISHING + 2.0) -> None:
        """Take no more requests, finish those that are being answered; twice is as good as once."""
        if self._server is None or self._thread is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(timeout))
        self._server.should_exit = True
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(1.0)


def _listen(host: str, port: int, option: str = "--http") -> socket.socket:
    if not 0 <= port < 65536:
        raise UsageError(f"a port is a number from 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"{host!r} is no name or address of this machine: {error}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # where it would take the port of one that still listens
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen at {host} port {port}: {_why(error, option)}") from None
    return listener


def _why(error: OSError, option: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"another program does; choose another port with {option} PORT (0: any that is free)"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"that needs an administrator's rights; choose one from 1024 on with {option} PORT"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address; 127.0.0.1 is this machine, 0.0.0.0 all of it"
    return str(error)
