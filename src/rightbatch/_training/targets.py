"""Metrics with a value to reach. Imports no torch, so that the page of a study can use it."""

from __future__ import annotations

from rightbatch._errors import UsageError

_FALLING = ("loss", "error", "perplexity", "mae", "mse")


def is_better(name: str, value: float, wanted: float) -> bool:
    """Whether a metric has reached `wanted`: losses and errors from above, others from below.

    >>> is_better("accuracy", 0.91, 0.9), is_better("val_loss", 0.5, 0.4)
    (True, False)
    """
    falls = any(word in name.lower() for word in _FALLING)
    return value <= wanted if falls else value >= wanted


def parse_target(text: str) -> tuple[str, float]:
    """Parse a metric and the value to reach.

    >>> parse_target("loss=0.45")
    ('loss', 0.45)

    Raises:
        UsageError: if it is not of the form METRIC=VALUE.
    """
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise UsageError(
            f"{text!r} is not a target; write a metric and its value, for example loss=0.45"
        ) from None
