"""Access control for every request: token, Host header and origin.

It refuses clients without the token, if one is set; web pages that reach this machine through DNS
rebinding, which the Host header reveals; and web pages of other sites that make a browser send
requests (cross-site request forgery), which the Origin header reveals. Tokens cannot be guessed
quickly: see `Guesses`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import secrets
import time
from collections import OrderedDict, deque
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


class Guesses:
    """Wrong tokens by address; used on the event loop only.

    Some a minute are answered at once, as a mistake is. Each further one is answered after a pause,
    a few at a time, and no other new connection of the address is let in meanwhile: its token is
    not even compared, since a quick answer to the right one would tell them apart.
    """

    FREE, WINDOW = 10, 60.0  # wrong tokens without a pause, in so many seconds
    PAUSE, AT_ONCE = 1.0, 4  # seconds, and how many wait for them
    _ADDRESSES, _TRUSTED = 10_000, 4096  # remembered at most

    def __init__(self) -> None:
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._waiting: dict[str, int] = {}
        self._trusted: OrderedDict[tuple[str, int], None] = OrderedDict()

    def is_busy(self, client: tuple[str, int]) -> bool:
        """Whether a token of this connection is not to be compared now."""
        waiting = self._waiting.get(_network(client[0]), 0)
        return waiting >= self.AT_ONCE and client not in self._trusted

    def right(self, client: tuple[str, int]) -> None:
        """Note that the connection sent the token."""
        self._trusted[client] = None
        self._trusted.move_to_end(client)
        if len(self._trusted) > self._TRUSTED:
            self._trusted.popitem(last=False)

    async def wrong(self, client: tuple[str, int]) -> None:
        """Note a wrong token, and pause if there were many."""
        self._trusted.pop(client, None)
        address, now = _network(client[0]), time.monotonic()
        times = self._wrong.setdefault(address, deque(maxlen=self.FREE + 1))
        self._wrong.move_to_end(address)
        if len(self._wrong) > self._ADDRESSES:
            self._wrong.popitem(last=False)
        times.append(now)
        if len(times) <= self.FREE or now - times[0] > self.WINDOW:
            return
        self._waiting[address] = self._waiting.get(address, 0) + 1
        try:
            await asyncio.sleep(self.PAUSE)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]


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
        self._guesses = Guesses()
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

        refusal = await self.refusal(scope)
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
        elif status == 429:
            headers.append((b"retry-after", b"1"))
        await send_with_headers(
            {"type": "http.response.start", "status": status, "headers": headers}
        )
        await send({"type": "http.response.body", "body": body})

    async def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the text with which to refuse a request; None to let it in."""
        headers = scope["headers"]
        host = _header(headers, b"host")
        name = _name(host)
        if "*" not in self._hosts and name not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            return 400, f"unknown Host {(name or host)!r}; accepted: {known}"
        origin = _header(headers, b"origin")
        if origin and scope["method"] not in _SAFE and not _is_of(origin, host):
            return 403, "requests from pages of other sites are not allowed"
        path = scope["path"]
        if self._token is None or path in _PUBLIC or path.startswith(_PUBLIC_BELOW):
            return None
        scheme, _, token = _header(headers, b"authorization").partition(" ")
        message = "missing or wrong token; send the header Authorization: Bearer TOKEN"
        if not token.strip():
            return 401, message
        client = tuple(scope.get("client") or ("", 0))
        if self._guesses.is_busy(client):
            return 429, "too many wrong tokens from this address; wait a second"
        is_valid = secrets.compare_digest(token.strip().encode("latin-1"), self._token)
        if scheme.lower() == "bearer" and is_valid:
            self._guesses.right(client)
            return None
        await self._guesses.wrong(client)
        return 401, message


def _network(address: str) -> str:
    """Return the address, or the /64 of an IPv6 address, of which one client has all."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False))


def _is_of(origin: str, host: str) -> bool:
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


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
