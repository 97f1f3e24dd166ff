"""Redirects of RTSP cameras, which FFmpeg follows to any host.

The camera is asked once before FFmpeg connects. A camera that answers FFmpeg otherwise than here is
not found out: against a hostile one only a firewall helps.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from urllib.parse import urlsplit

from rightbatch._serve.sources.urls import resolve, with_login, without_login

_PORTS = {"rtsp": 554, "rtsps": 322}
_MOST = 5  # redirects
_MOST_BYTES = 16_384  # of an answer's headers


def follow_redirects(url: str, seconds: float) -> str:
    """Return the URL to which a camera redirects, on the same host; without a redirect, `url`.

    Args:
        url: `rtsp://` or `rtsps://`, with a login.
        seconds: to connect and for the answer.

    Raises:
        OSError: if it redirects elsewhere (see `resolve`), or does not answer.
    """
    until = time.monotonic() + seconds
    for _ in range(_MOST):
        try:
            location = _location(url, until)
        except TimeoutError:
            raise TimeoutError(f"no answer within {seconds:g} s") from None
        if location is None:
            return url
        url = with_login(resolve(url, location), url)
    raise OSError(f"the camera redirects more than {_MOST} times")


def _location(url: str, until: float) -> str | None:
    """Return the Location of the answer to DESCRIBE, if it is a redirect."""
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    request = (
        f"DESCRIBE {without_login(url)} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n"
    )
    with socket.create_connection(address, _left(until)) as plain:
        connection = plain
        if parts.scheme == "rtsps":  # as FFmpeg: cameras have certificates that they signed
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = context.wrap_socket(plain, server_hostname=address[0])
        with connection:
            connection.sendall(request.encode())
            answer = b""
            while b"\r\n\r\n" not in answer and len(answer) < _MOST_BYTES:
                connection.settimeout(_left(until))
                part = connection.recv(4096)
                if not part:
                    break
                answer += part
    text = answer.decode(errors="replace")
    if not re.match(r"RTSP/1\.\d 3\d\d\b", text):
        return None
    found = re.search(r"^location:[ \t]*(\S+)", text, re.IGNORECASE | re.MULTILINE)
    return found[1] if found else None


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
