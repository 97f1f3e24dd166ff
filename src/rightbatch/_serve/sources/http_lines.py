"""The connections of HTTP requests, which another thread may cut.

Timeouts hold for each part that arrives. A camera that sends a byte now and then would keep the
thread that waits for the rest, and its connection, for ever.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import urllib.request
import weakref
from contextlib import suppress
from typing import Any


class Lines:
    """The connections of one source. After `cut` there are no new ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._is_cut = False

    def cut(self) -> None:
        """End all that is sent and received; may be called by any thread, more than once."""
        with self._lock:
            self._is_cut = True
            sockets = list(self._sockets)
        for line in sockets:
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def handlers(self) -> list[Any]:
        """Return urllib's handlers whose connections these are."""
        # As FFmpeg: cameras have certificates that they signed themselves.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return [_Http(self), _Https(self, context)]

    def connect(self, *arguments: Any) -> socket.socket:
        """Do as `socket.create_connection`."""
        line = socket.create_connection(*arguments)
        self._hold(line)
        return line

    def encrypt(self, line: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
        """Do as `SSLContext.wrap_socket`."""
        # The handshake comes last: it waits for the camera, and needs to be cut, too.
        encrypted = context.wrap_socket(line, server_hostname=host, do_handshake_on_connect=False)
        try:
            self._hold(encrypted)
            encrypted.do_handshake()
        except BaseException:
            encrypted.close()
            raise
        return encrypted

    def _hold(self, line: socket.socket) -> None:
        with self._lock:
            if not self._is_cut:
                self._sockets.add(line)
                return
        line.close()
        raise OSError("the source is closed")


class _Http(urllib.request.HTTPHandler):
    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def http_open(self, req: urllib.request.Request) -> Any:
        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            return _Connection(self._lines, host, **options)

        return self.do_open(connection, req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, lines: Lines, context: ssl.SSLContext) -> None:
        super().__init__(context=context)
        self._lines, self._ssl = lines, context

    def https_open(self, req: urllib.request.Request) -> Any:
        def connection(host: str, **options: Any) -> http.client.HTTPConnection:
            return _EncryptedConnection(self._lines, self._ssl, host, **options)

        return self.do_open(connection, req)


class _Connection(http.client.HTTPConnection):
    def __init__(self, lines: Lines, host: str, **options: Any) -> None:
        super().__init__(host, **options)
        self._lines = lines
        self._create_connection = lines.connect


class _EncryptedConnection(_Connection):
    default_port = http.client.HTTPS_PORT

    def __init__(self, lines: Lines, context: ssl.SSLContext, host: str, **options: Any) -> None:
        super().__init__(lines, host, **options)
        self._ssl = context

    def connect(self) -> None:
        super().connect()
        host = getattr(self, "_tunnel_host", None) or self.host  # behind a proxy
        self.sock = self._lines.encrypt(self.sock, self._ssl, host)
