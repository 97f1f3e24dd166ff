"""Remove passwords from messages and URLs, and what a terminal or an encoder cannot take."""

from __future__ import annotations

import re

_HIDDEN = frozenset((0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)))


def redact(text: str) -> str:
    """Replace the passwords of URLs in `text`: what precedes an @, and parameters named like one.

    It hides too much rather than too little, since a password may contain any character.
    """
    text = re.sub(r"(\w://)\S*@", r"\1***@", text)
    return re.sub(r"(?i)(\w*(?:pass|pwd|pw|token|key|auth|secret|sig)\w*=)[^&\s]+", r"\1***", text)


def printable(text: str) -> str:
    r"""Replace control characters, which a terminal obeys, and bytes that are not UTF-8.

    >>> printable("a\x1b[2Jb\udcff")
    'a\\x1b[2Jb\\xff'
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    number = ord(character)
    if 0xD800 <= number <= 0xDFFF:  # how Python keeps a byte of a file name that is not UTF-8
        return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else "\ufffd"
    # C0, DEL and C1; marks that turn the direction of the text; separators of lines.
    if number < 0x20 or 0x7F <= number < 0xA0:
        return f"\\x{number:02x}"
    if number in _HIDDEN:
        return f"\\u{number:04x}"
    return character


def describe_error(error: BaseException) -> str:
    """Return the message of an error as one line without passwords."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(redact(" ".join(str(text).split())))
