"""Progress of a sweep on stderr: a line for the sweep and for each run, a note for each end."""

from __future__ import annotations

from collections.abc import Sequence

from rightbatch._progress import Line, Live
from rightbatch._study.records import Ended, Point, RunKey
from rightbatch._units import format_seconds

_SHOWN = ("evaluation_loss", "loss")  # the first that was measured


class Notes:
    """Writes to a `Live` whose total is the number of runs; notes only if `enabled`.

    A run's line shows its part of `epochs`, if they are known.
    """

    def __init__(self, live: Live, total: int, epochs: int | None, *, enabled: bool = True) -> None:
        self._live, self._total, self._epochs, self._enabled = live, total, epochs, enabled
        self._lines: dict[RunKey, Line] = {}
        self._done = 0

    def done(self, count: int) -> None:
        """Show that an earlier call finished `count` runs."""
        self._count(count)
        if count:
            self._note(f"{count} of {self._total} runs were finished before")

    def began(self, key: RunKey) -> None:
        self._lines[key] = self._live.line(str(key), self._epochs)
        self._lines[key].show("starting")

    def went(self, key: RunKey, points: Sequence[Point]) -> None:
        last = points[-1]
        values = {name: value for point in points for name, value in point.values.items()}
        shown = [f"{name} {values[name]:.4g}" for name in _SHOWN if name in values][:1]
        text = ", ".join([*shown, f"{last.steps} steps"])
        done = None if self._epochs is None else min(int(last.epochs), self._epochs)
        self._lines[key].show(text, done)

    def ended(self, key: RunKey, ended: Ended) -> None:
        self._lines.pop(key).end()
        self._count(self._done + 1)
        self._note(
            f"{self._done} of {self._total}: {key}: {ended.status} after {ended.steps} steps, "
            f"{format_seconds(ended.seconds)} of training ({ended.reason})"
        )

    def _count(self, done: int) -> None:
        self._done = done
        self._live.show(f"{done} of {self._total} runs", done)

    def _note(self, text: str) -> None:
        if self._enabled:
            self._live.note(text)
