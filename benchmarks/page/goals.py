"""Goals and whether they were met, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """`found` has a figure for each case; `is_met` judges one, and `show` writes one."""

    text: str
    found: Mapping[str, float]
    is_met: Callable[[float], bool]
    show: Callable[[float], str]

    def row(self) -> str:
        """State the goal, how many cases meet it, and the figures of those that do not."""
        missed = [
            f"{name} ({self.show(value)})"
            for name, value in self.found.items()
            if not self.is_met(value)
        ]
        met = len(self.found) - len(missed)
        if len(self.found) == 1:
            (value,) = self.found.values()
            verdict = f"{'met' if met else 'missed'}: {self.show(value)}"
        elif not missed:
            verdict = f"met in all {met} cases"
        elif not met:
            verdict = f"missed in all {len(missed)} cases: {', '.join(missed)}"
        else:
            verdict = f"met in {met} of {len(self.found)} cases; missed: {', '.join(missed)}"
        return f"| {self.text} | {verdict} |"


def goals(*listed: Goal) -> str:
    """A table of all goals."""
    return "\n".join(["| goal | result |", "|---|---|", *(goal.row() for goal in listed)]) + "\n"
