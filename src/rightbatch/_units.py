"""Parse and format sizes in bytes and durations in seconds."""

from __future__ import annotations

import math
import re

from rightbatch._errors import UsageError

_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


def parse_bytes(text: str | int) -> int:
    """Parse a size such as `"2GiB"`, `"500 MB"` or a plain number of bytes.

    Raises:
        UsageError: if `text` is not a size, or not positive.

    >>> parse_bytes("1.5GiB")
    1610612736
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(text))
    unit = _BYTES.get(match[2].lower() or "b") if match else None
    if match is None or unit is None or (size := int(float(match[1]) * unit)) <= 0:
        raise UsageError(
            f"{text!r} is not a memory size; write a number with one of "
            "B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, for example 2GiB"
        )
    return size


def format_bytes(size: float) -> str:
    """Format bytes in binary units, with three significant digits.

    >>> format_bytes(2**31), format_bytes(900 * 2**20)
    ('2.00 GiB', '900 MiB')
    """
    value, unit = float(size), "B"
    for following in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 999.5:  # 999.6 would be formatted as 1000
            break
        value, unit = value / 1024, following
    digits = 0 if unit == "B" or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def parse_seconds(text: str | float) -> float:
    """Parse a duration such as `"3min"`, `"90 s"`, `"1.5h"`, `"50ms"` or a number of seconds.

    Raises:
        UsageError: if `text` is not a duration, or not positive.

    >>> parse_seconds("3min"), parse_seconds(90)
    (180.0, 90.0)
    """
    if isinstance(text, int | float) and 0 < text < math.inf:
        return float(text)
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", str(text))
    unit = _SECONDS.get(match[2].lower() or "s") if match else None
    if match is None or unit is None or (seconds := float(match[1]) * unit) <= 0:
        raise UsageError(
            f"{text!r} is not a duration; write a number with one of ms, s, min, h, "
            "for example 3min"
        )
    return seconds


def format_step(seconds: float) -> str:
    """Format the duration of a step, which may be short.

    >>> format_step(0.0021), format_step(0.3)
    ('2.1 ms', '0.3 s')
    """
    return f"{1000 * seconds:.3g} ms" if seconds < 0.1 else format_seconds(seconds)


def format_seconds(seconds: float) -> str:
    """Format a duration as `8.3 s`, `2 min 05 s` or `1 h 02 min`.

    >>> format_seconds(125)
    '2 min 05 s'
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
