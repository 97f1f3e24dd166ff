"""The parent's end of the agents' sockets: one message at a time, without threads."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Message = dict[str, Any]
_MAX_PATH = 100  # bytes of a Unix socket's path; the kernel allows 107, macOS 103


class Listener:
    """Listens on a private Unix socket, on loopback where there is none; a context manager.

    `poll` returns messages with the agent's `pid`; a connection's end is the event `closed`.
    Connections that do not begin with the `secret` are closed.
    """

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        self.on_agent: Callable[[socket.socket], object] = lambda connection: None
        """Called with the connection of each agent."""
        self._folder = tempfile.TemporaryDirectory(prefix="rb-", ignore_cleanup_errors=True)
        self._selector = selectors.DefaultSelector()
        path = str(Path(self._folder.name) / "agent")
        if hasattr(socket, "AF_UNIX") and os.name == "posix" and len(path) < _MAX_PATH:
            self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._server.bind(path)
            self.address: Any = path
        else:
            self._server = socket.create_server(("127.0.0.1", 0))
            self.address = list(self._server.getsockname()[:2])
        self._server.listen(64)
        self._selector.register(self._server, selectors.EVENT_READ)

    @property
    def folder(self) -> str:
        """The temporary folder of the socket."""
        return self._folder.name

    def poll(self, timeout: float) -> Iterator[Message]:
        """Yield the messages that arrive within `timeout` seconds; return after the first batch."""
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._server:
                connection, _ = self._server.accept()
                connection.setblocking(False)
                self._selector.register(connection, selectors.EVENT_READ, _Agent(connection))
            else:
                yield from self._read(key.data)

    def _read(self, agent: _Agent) -> Iterator[Message]:
        is_open = True
        try:
            data = agent.connection.recv(1 << 16)
            is_open = bool(data)
            agent.pending += data
        except BlockingIOError:
            return
        except OSError:
            is_open = False
        *lines, agent.pending = agent.pending.split(b"\n")
        for line in lines:
            message = _parse(line)
            if agent.pid is None:
                if not secrets.compare_digest(str(message.get("secret", "")), self.secret):
                    is_open = False
                    break
                agent.pid = message.get("pid", 0)
                self.on_agent(agent.connection)
                message.pop("secret")
            agent.is_lifeline = agent.is_lifeline or message.get("event") == "lifeline"
            yield message | {"pid": agent.pid}
        if not is_open:
            self._selector.unregister(agent.connection)
            agent.connection.close()
            if agent.pid is not None and not agent.is_lifeline:
                yield {"event": "closed", "pid": agent.pid}

    def close(self) -> None:
        """Close all connections; agents of a trial end their processes then."""
        for key in list(self._selector.get_map().values()):
            with contextlib.suppress(OSError):
                key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._folder.cleanup()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Agent:
    """A connection, with the part of a line that has arrived."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pending = b""
        self.pid: int | None = None
        self.is_lifeline = False


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
