"""The login in a URL, and URLs that a camera sends."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit, urlunsplit

from rightbatch._serve.redaction import redact


def without_login(url: str) -> str:
    """Return the URL without the name and password before its host."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def with_login(url: str, original: str) -> str:
    """Return `url` with the login of `original` in place of its own."""
    login, at, _ = urlsplit(original).netloc.rpartition("@")
    parts = urlsplit(without_login(url))
    return urlunsplit(parts._replace(netloc=f"{login}{at}{parts.netloc}"))


def resolve(url: str, location: str, *, sent: str = "the camera redirects to") -> str:
    """Return the URL of a `location` that the host of `url` sent, which may be relative.

    Args:
        url: absolute.
        location: is on the same host, by the same protocol, with encryption if `url` has it.
        sent: who sent it, for the message.

    Raises:
        OSError: if it is not, or not valid.
    """
    try:
        if re.search(r"[\x00-\x20\x7f]", location):
            raise ValueError
        found = urljoin(url, location)
        before, parts = urlsplit(url), urlsplit(found)
        _ = parts.port  # raises ValueError if invalid
    except ValueError:
        raise OSError(f"{sent} an invalid URL, {redact(location)[:200]}") from None
    place, hint = f"{parts.scheme}://{parts.hostname or ''}", "add that URL as the source if you"
    if parts.hostname != before.hostname or parts.scheme.removesuffix(
        "s"
    ) != before.scheme.removesuffix("s"):
        raise OSError(f"{sent} another host, {place}; {hint} trust it")
    if before.scheme.endswith("s") and not parts.scheme.endswith("s"):
        raise OSError(
            f"{sent} {place}, which is not encrypted; {hint} accept that a password is readable"
        )
    return found
