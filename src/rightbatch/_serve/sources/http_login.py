"""Logins of HTTP cameras: Basic, and Digest as RFC 7616 has it.

urllib's own handlers take the first challenge of several only, know no SHA-256, send a password
that is refused six times, after which many cameras lock the login, and fail on other letters than
those of ASCII.
"""

from __future__ import annotations

import hashlib
import urllib.request
from collections.abc import Callable
from http.client import HTTPMessage
from typing import Any
from urllib.parse import unquote, urlsplit

_HASHES: dict[str, Callable[[bytes], Any]] = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}


def login_handlers(url: str) -> list[Any]:
    """Return urllib's handlers that send the login of `url`, if it has one.

    It is sent to every URL: those who use them follow redirects on the same host only.
    """
    parts = urlsplit(url)
    if parts.username is None:
        return []
    login = _Login(unquote(parts.username), unquote(parts.password or ""))
    return [_Digest(login), _Basic(login)]


class _Login(urllib.request.HTTPPasswordMgr):
    def __init__(self, user: str, password: str) -> None:
        super().__init__()
        self._found = user, password

    def find_user_password(self, realm: str, authuri: str) -> tuple[str, str]:
        return self._found


class _Digest(urllib.request.HTTPDigestAuthHandler):
    _is_second = False  # of the tries

    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, hdrs: HTTPMessage) -> Any:
        challenge = _strongest(hdrs.get_all("www-authenticate", []))
        if challenge is None:
            return None
        # A nonce may have become stale; a wrong password must not lock the login.
        if req.has_header(self.auth_header) and (self._is_second or "stale=true" not in challenge):
            return None
        self._is_second = req.has_header(self.auth_header)
        return self.retry_http_digest_auth(req, challenge)

    def get_algorithm_impls(self, algorithm: str) -> Any:
        new = _HASHES[algorithm.upper()]

        def digest(text: str) -> str:
            return str(new(text.encode()).hexdigest())

        return digest, lambda secret, text: digest(f"{secret}:{text}")


class _Basic(urllib.request.HTTPBasicAuthHandler):
    def http_error_401(self, req: Any, fp: Any, code: int, msg: str, hdrs: HTTPMessage) -> Any:
        try:
            return super().http_error_401(req, fp, code, msg, hdrs)
        except ValueError:  # another scheme, of which the status tells enough
            return None


def _strongest(challenges: list[str]) -> str | None:
    """Return the Digest challenge with the best known hash; None if there is none."""
    best, strength = None, -1
    for challenge in challenges:
        scheme, _, parameters = challenge.partition(" ")
        if scheme.lower() != "digest":
            continue
        pairs = urllib.request.parse_keqv_list(
            [pair for pair in urllib.request.parse_http_list(parameters) if "=" in pair]
        )
        algorithm = pairs.get("algorithm", "MD5").upper()
        if algorithm in _HASHES and [*_HASHES].index(algorithm) > strength:
            best, strength = challenge, [*_HASHES].index(algorithm)
    return best
