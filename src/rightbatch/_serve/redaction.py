"""Remove passwords from messages and URLs."""

from __future__ import annotations

import re


def redact(text: str) -> str:
    """Replace the passwords of URLs in `text`: what precedes an @, and parameters named like one.

    It hides too much rather than too little, since a password may contain any character.
    """
    text = re.sub(r"(\w://)\S*@", r"\1***@", text)
    return re.sub(r"(?i)(\w*(?:pass|pwd|pw|token|key|auth|secret|sig)\w*=)[^&\s]+", r"\1***", text)


def describe_error(error: BaseException) -> str:
    """Return the message of an error as one line without passwords."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact(" ".join(str(text).split()))
