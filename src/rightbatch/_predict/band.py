"""How far measured bytes were from predicted ones, as factors.

The band of reserved peaks was derived from brackets of batch sizes on GPUs that others measured, of
one half of the architectures (`benchmarks/predict_public/errors.py`, docs/benchmarks.md). Most of
them are of forward passes; the brackets are wider than the band, so that they cannot confirm it.
"""

from __future__ import annotations

ALLOCATED = (0.99, 1.01)
"""The one whole step that was compared with a recording was 0.1% above in allocated memory."""
RESERVED = (0.95, 1.18)
"""The 5% and 95% quantiles of the most likely distribution of errors."""


def within(value: int, band: tuple[float, float]) -> dict[str, int]:
    """Return the bounds of a number of bytes.

    >>> within(1000, (0.9, 1.1))
    {'low': 900, 'high': 1100}
    """
    return {"low": round(band[0] * value), "high": round(band[1] * value)}
