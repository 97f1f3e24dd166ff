"""Who may ask the server for something: the door that every request comes through.

Three kinds of visitor are kept out. Whoever does not know the token, where one is set. A web page
whose own name was made to point at this machine (DNS rebinding): the name that the browser asks for
gives it away. And a web page that makes a browser send orders to this machine (cross-site request
forgery): the browser says where the page came from.
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

_PUBLIC = ("/", "/health")  # neither says what is seen here
_PUBLIC_BELOW = "/static/"
_SAFE = ("GET", "HEAD", "OPTIONS")  # change nothing
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",  # no other page shows what a camera sees
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]


def is_this_machine(host: str) -> bool:
    """Whether what listens at `host` is out of the reach of other machines."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class AccessControl:
    """Lets a request through to the application, or answers it with JSON that says why not.

    Args:
        app: the application.
        token: that requests bear (`Authorization: Bearer TOKEN`), except for the page, its files
            and `/health`.
        hosts: the names by which this server is asked for, without ports; `"*"` is any. By default
            those of this machine, or any where there is a token, which a foreign page cannot know.
    """

    def __init__(self, app: App, *, token: str | None, hosts: Collection[str] | None) -> None:
        if hosts is None:
            hosts = THIS_MACHINE if token is None else ["*"]
        self._app = app
        self._token = None if token is None else token.encode()
        names = [hosts] if isinstance(hosts, str) else hosts
        self._hosts = frozenset(name.strip("[]").lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
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
            return 400, f"this server is not called {name or 'that'}; it is: {known}"
        origin = _header(headers, b"origin")
        if origin and scope["method"] not in _SAFE and urlsplit(origin).netloc != host:
            return 403, "a page of another site may not ask for this"
        path = scope["path"]
        if self._token is None or path in _PUBLIC or path.startswith(_PUBLIC_BELOW):
            return None
        kind, _, borne = _header(headers, b"authorization").partition(" ")
        is_known = secrets.compare_digest(borne.strip().encode("latin-1"), self._token)
        if kind.lower() == "bearer" and is_known:
            return None
        return 401, "a request bears the token: Authorization: Bearer TOKEN"


def _header(headers: list[tuple[bytes, bytes]], name: bytes) -> str:
    """One that is there twice is none: which of them counts is not for the sender to choose."""
    values = [value for key, value in headers if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else ""


def _name(host: str) -> str:
    """A Host header without its port: `[::1]:8000` is `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
