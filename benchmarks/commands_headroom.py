"""The batch sizes that `run` says would fit, against what `fit` found under the same limit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

WIDEST = 0.15
"""The goal for an interval's width, as a share of what `fit` found."""
_NOT_MEMORY = "nothing larger was tried"
"""In the reason of `fit` where the data set or an option was the limit, not the memory."""


@dataclass(frozen=True)
class Headroom:
    """The interval `low` to `high` of a script beside the answer of `fit`; None if unknown.

    `is_comparable` says that memory was what limited `fit`, `is_measured` that `run` was asked.
    """

    low: int | None
    high: int | None
    fitted: int | None
    is_comparable: bool
    is_measured: bool = True

    @property
    def is_known(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def covers(self) -> bool:
        """Whether the interval has the answer of `fit`."""
        if self.low is None or self.high is None or self.fitted is None:
            return False
        return self.low <= self.fitted <= self.high

    @property
    def width(self) -> float | None:
        """The interval's width as a share of its middle."""
        if self.low is None or self.high is None:
            return None
        return 2 * (self.high - self.low) / (self.high + self.low)

    @property
    def cell(self) -> str:
        """The interval in a table."""
        if not self.is_known:
            return "unknown" if self.is_measured else "not run"
        note = "" if self.covers or not self.is_comparable else ", **not covered**"
        return f"{self.low} to {self.high}{note}"


def compare(found: dict[str, Any]) -> Headroom:
    """Return the headroom in what is stored of one script."""
    said = found.get("headroom", {}).get("largest_batch_size") or {}
    answer = found.get("fit", {}).get("answer", {})
    fitted = answer.get("batch_size")
    is_comparable = fitted is not None and _NOT_MEMORY not in answer.get("reason", "")
    return Headroom(
        said.get("low"), said.get("high"), fitted, is_comparable, is_measured="headroom" in found
    )


def widths(compared: Iterable[Headroom]) -> list[float]:
    """The widths of the known intervals."""
    return [each.width for each in compared if each.width is not None]
