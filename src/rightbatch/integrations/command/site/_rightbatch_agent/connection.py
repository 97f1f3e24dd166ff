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
        self._settings = settings
        self._sending = threading.Lock()
        self._socket: _Socket | None = None
        self._connect()

    def _connect(self) -> None:
        self._socket = _Socket(self._settings.address)
        hello = {"event": "hello", "secret": self._settings.secret, **_about_this_process()}
        self._socket.send(hello)

    def send(self, **message: Any) -> None:
        if self._socket is None or os.getpid() != self._pid:
            return
        try:
            with self._sending:
                if not self._socket.is_ours:
                    self._connect()
                    _renew_lifeline(self._settings)
                self._socket.send(message)
        except (OSError, ValueError):
            self._socket = None

    def wait_for_the_end(self) -> None:
        """Block until the parent ends this process."""
        if self._socket is not None:
            self._socket.wait()
        os._exit(1)


class _Socket:
    """A socket to the parent, whose descriptor a script may close, and use for a file of its own.

    A daemon closes all descriptors that it does not know.
    """

    def __init__(self, address: Any) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._inode = self._inode_now()
        self._socket.settimeout(_TIMEOUT)
        self._socket.connect(address if isinstance(address, str) else tuple(address))

    def _inode_now(self) -> tuple[int, int] | None:
        try:
            found = os.fstat(self._socket.fileno())
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @property
    def is_ours(self) -> bool:
        """Whether the descriptor is still that of the socket."""
        return os.name != "posix" or self._inode_now() == self._inode

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def wait(self) -> None:
        """Block until the parent closes its end."""
        self._socket.settimeout(None)
        self._socket.recv(1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def __del__(self) -> None:
        if not self.is_ours:
            self._socket.detach()  # else the script's own file would be closed


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


_lifelines: list[_Socket] = []


def end_with_parent(settings: Settings) -> None:
    """End this process when the parent has gone, however it went; forked children as well."""
    _watch(settings)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _watch(settings))


def _renew_lifeline(settings: Settings) -> None:
    if _lifelines and not _lifelines[-1].is_ours:
        _watch(settings)


def _watch(settings: Settings) -> None:
    """Open a connection on which nothing is sent; its end is the parent's end."""
    try:
        lifeline = _Socket(settings.address)
        lifeline.send({"event": "lifeline", "secret": settings.secret, "pid": os.getpid()})
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
            lifeline.wait()
        finally:
            os._exit(1)

    threading.Thread(target=wait, daemon=True, name="rightbatch").start()


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
