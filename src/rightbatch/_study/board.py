"""Progress of a sweep on stderr: one bar for the whole, and a line for each run that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from rightbatch._study.records import Ended, Point, RunKey
from rightbatch._units import format_seconds

_TOLD = ("evaluation_loss", "loss")  # of what was measured, the first that is there


class Terminal:
    """A live picture on a terminal; elsewhere a line for each run that has ended."""

    def __init__(self, total: int, epochs: int, *, enabled: bool = True) -> None:
        console = Console(stderr=True)
        self._is_live = enabled and console.is_interactive
        self._enabled, self._epochs, self._total = enabled, epochs, total
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            TextColumn("{task.fields[told]}"),
            console=console,
            transient=True,
            disable=not self._is_live,
        )
        self._whole = self._progress.add_task("study", total=total, told="")
        self._runs: dict[RunKey, TaskID] = {}
        self._done = 0

    def done(self, count: int) -> None:
        """So many runs were there before."""
        self._done = count
        self._progress.update(self._whole, completed=count)
        if count and self._enabled:
            self._progress.console.print(
                f"{count} of {self._total} runs are there already", markup=False
            )

    def began(self, key: RunKey) -> None:
        self._runs[key] = self._progress.add_task(str(key), total=self._epochs, told="starting")

    def went(self, key: RunKey, points: Sequence[Point]) -> None:
        last = points[-1]
        told = f"{last.steps} steps"
        for name in _TOLD:
            for point in reversed(points):
                if name in point.values:
                    told = f"{name} {point.values[name]:.4g}, {told}"
                    break
            else:
                continue
            break
        done = min(int(last.epochs), self._epochs)
        self._progress.update(self._runs[key], completed=done, told=told)

    def ended(self, key: RunKey, ended: Ended) -> None:
        self._progress.remove_task(self._runs.pop(key))
        self._done += 1
        self._progress.update(self._whole, completed=self._done)
        if self._enabled:
            seconds = format_seconds(ended.seconds)
            self._progress.console.print(
                f"{self._done} of {self._total}: {key}: {ended.status} after {ended.steps} steps, "
                f"{seconds} of training ({ended.reason})",
                markup=False,
                soft_wrap=True,
            )

    def __enter__(self) -> Terminal:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
