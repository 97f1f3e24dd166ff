"""Access control for every request: token, Host header and origin.

It refuses clients without the token, if one is set; web pages that reach this machine through DNS
rebinding, which the Host header reveals; and web pages of other sites that make a browser send
requests (cross-site request forgery), which the Origin header reveals.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")

_PUBLIC = ("/", "/health")  # contain no data
_PUBLIC_BELOW = "/static/"
_SAFE = ("GET", "HEAD", "OPTIONS")  # methods without side effects
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",  # other sites cannot embed snapshots
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


def is_this_machine(host: str) -> bool:
    """Whether `host` is a loopback address, which other machines cannot reach."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class AccessControl:
    """ASGI middleware that forwards a request, or answers it with a JSON error.

    Args:
        app: the application.
        token: that requests must send (`Authorization: Bearer TOKEN`), except for the page, its
            files and `/health`.
        hosts: accepted values of the Host header, without ports; `"*"` accepts any. Default: the
            names of this machine; any if there is a token, which pages of other sites do not know.
    """

    def __init__(self, app: App, *, token: str | None, hosts: Collection[str] | None) -> None:
        if hosts is None:
            hosts = THIS_MACHINE if token is None else ["*"]
        self._app = app
        self._token = None if token is None else token.encode()
        names = [hosts] if isinstance(hosts, str) else hosts
        self._hosts = frozenset(name.strip("[]").lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_RAW_HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, text = refusal
        body = json.dumps({"error": text}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send_with_headers(
            {"type": "http.response.start", "status": status, "headers": headers}
        )
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers = scope["headers"]
        host = _header(headers, b"host")
        name = _name(host)
        if "*" not in self._hosts and name not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            return 400, f"unknown Host {(name or host)!r}; accepted: {known}"
        origin = _header(headers, b"origin")
        if origin and scope["method"] not in _SAFE and urlsplit(origin).netloc != host:
            return 403, "requests from pages of other sites are not allowed"
        path = scope["path"]
        if self._token is None or path in _PUBLIC or path.startswith(_PUBLIC_BELOW):
            return None
        scheme, _, token = _header(headers, b"authorization").partition(" ")
        is_valid = secrets.compare_digest(token.strip().encode("latin-1"), self._token)
        if scheme.lower() == "bearer" and is_valid:
            return None
        return 401, "missing or wrong token; send the header Authorization: Bearer TOKEN"


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> str:
    """Return a header; "" if it is missing or repeated, since the meaning would be ambiguous."""
    values = [value for key, value in headers if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


def _name(host: str) -> str:
    """Return a Host header without its port: `[::1]:8000` gives `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
