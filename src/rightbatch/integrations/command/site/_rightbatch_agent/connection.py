"""Messages to the parent: JSON lines over a socket, which a forked child never shares.

The environment names the address, because launchers close inherited descriptors.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from typing import Any

from .settings import Settings

_TIMEOUT = 5.0  # seconds to connect


class Connection:
    """The connection of one process; after an error of the socket, messages are dropped."""

    def __init__(self, settings: Settings) -> None:
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._socket: socket.socket | None = _connect(settings.address)
        self.send(event="hello", secret=settings.secret, **_about_this_process())

    def send(self, **message: Any) -> None:
        if self._socket is None or os.getpid() != self._pid:
            return
        try:
            with self._sending:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except (OSError, ValueError):
            self._socket = None

    def wait_for_the_end(self) -> None:
        """Block until the parent ends this process."""
        if self._socket is not None:
            self._socket.settimeout(None)
            self._socket.recv(1)
        os._exit(1)


_connections: dict[int, Connection] = {}  # by pid: a forked child inherits that of its parent


def connection(settings: Settings) -> Connection:
    """Return the connection of this process, made on the first call."""
    pid = os.getpid()
    if pid not in _connections:
        _connections[pid] = Connection(settings)
    return _connections[pid]


def report(**message: Any) -> None:
    """Send a message from wherever it occurs; without settings or parent it is dropped."""
    settings = Settings.from_environment()
    if settings is not None:
        try:
            connection(settings).send(**message)
        except OSError:
            pass


_lifelines: list[socket.socket] = []


def end_with_parent(settings: Settings) -> None:
    """End this process when the parent has gone, however it went; forked children as well."""
    _watch(settings)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _watch(settings))


def _watch(settings: Settings) -> None:
    """Open a connection on which nothing is sent; its end is the parent's end."""
    try:
        lifeline = _connect(settings.address)
        hello = {"event": "lifeline", "secret": settings.secret, "pid": os.getpid()}
        lifeline.sendall(json.dumps(hello).encode() + b"\n")
    except OSError:
        os._exit(1)  # the parent has gone already
    _lifelines.append(lifeline)
    if sys.platform.startswith("linux"):
        # The kernel kills this process when the other end closes. No thread is needed, which
        # would make Python warn at every fork.
        import fcntl
        import signal

        fcntl.fcntl(lifeline, 10, int(signal.SIGKILL))  # 10: F_SETSIG
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
        return

    def wait() -> None:
        try:
            lifeline.recv(1)
        finally:
            os._exit(1)

    threading.Thread(target=wait, daemon=True, name="rightbatch").start()


def _connect(address: Any) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.settimeout(_TIMEOUT)
    made.connect(address if isinstance(address, str) else tuple(address))
    return made


def _about_this_process() -> dict[str, Any]:
    ranks = {
        key.lower(): int(os.environ[key])
        for key in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        if os.environ.get(key, "").isdigit()
    }
    return {
        "pid": os.getpid(),
        "parent_pid": os.getppid(),
        "program": (sys.argv[:1] or [""])[0],
        "python": sys.version.split()[0],
        **ranks,
    }
