"""What a person sees while something runs: live lines on stderr, nothing where nobody looks."""

from __future__ import annotations

import random
from types import TracebackType

_state = random.getstate()  # importing rich draws from the generator that is the user's
try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
finally:
    random.setstate(_state)


class Line:
    """One line of a `Live`; `show` says what happens now."""

    def __init__(self, progress: Progress, title: str, total: int | None) -> None:
        self._progress, self._title = progress, title
        self._task = progress.add_task(title, total=total)

    def show(self, text: str, done: int | None = None) -> None:
        self._progress.update(self._task, description=f"{self._title}: {text}", completed=done)

    def end(self) -> None:
        """Take it away."""
        self._progress.remove_task(self._task)


class Live:
    """A line with a spinner and the time, and others below it for what goes on at once.

    Writes to stderr and disappears at the end; without a terminal it writes nothing.
    """

    def __init__(self, title: str, *, enabled: bool = True, total: int | None = None) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *([BarColumn()] if total is not None else []),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not (enabled and console.is_interactive),
        )
        self._first = self.line(title, total)

    def line(self, title: str, total: int | None = None) -> Line:
        """Another line, below."""
        return Line(self._progress, title, total)

    def show(self, text: str, done: int | None = None) -> None:
        self._first.show(text, done)

    def note(self, text: str) -> None:
        """A line of its own on stderr, above this one, with or without a terminal."""
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
