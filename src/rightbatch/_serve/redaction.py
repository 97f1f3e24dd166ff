"""Texts without passwords: what errors and URLs say."""

from __future__ import annotations

import re


def redact(text: str) -> str:
    """`text` without the passwords of URLs in it: what is before an @, and what is named so.

    Rather too much is hidden than too little: a password may hold any character.
    """
    text = re.sub(r"(\w://)\S*@", r"\1***@", text)
    return re.sub(r"(?i)(\w*(?:pass|pwd|pw|token|key|auth|secret|sig)\w*=)[^&\s]+", r"\1***", text)


def describe_error(error: BaseException) -> str:
    """What an error says, in a line without passwords."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return redact(" ".join(str(text).split()))
