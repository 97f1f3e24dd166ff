"""Progress on stderr: live lines in a terminal, plain lines elsewhere (a CI log, a file)."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import time
from types import TracebackType

from rightbatch._units import format_seconds

_state = random.getstate()  # importing rich draws from Python's global random generator
try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
finally:
    random.setstate(_state)

_INTERVAL, _MAX_INTERVAL = 10.0, 60.0
"""Seconds between two plain lines: 10 at first, then a tenth of the elapsed time, up to 60."""


class Line:
    """One line of a `Live`; `show` sets its text."""

    def __init__(self, progress: Progress, title: str, total: int | None) -> None:
        self._progress, self._title = progress, title
        self._task = progress.add_task(title, total=total)

    def show(self, text: str, done: int | None = None) -> None:
        """Set the text, and how much of the line's total is done."""
        self._progress.update(self._task, description=f"{self._title}: {text}", completed=done)

    def end(self) -> None:
        """Remove the line."""
        self._progress.remove_task(self._task)


class Live:
    """A line with a spinner and the elapsed time, and more lines below it for parallel work.

    Writes to stderr. In a terminal the lines disappear at the end. Without a terminal, the latest
    text of the first line is printed every 10 seconds (up to 60 in a long run), and a new stage at
    once; what takes less than 10 seconds prints its stages only. With `plain` that is so in a
    terminal, too: where a command has the terminal, a line that is redrawn would spoil its own.
    """

    def __init__(
        self, title: str, *, enabled: bool = True, total: int | None = None, plain: bool = False
    ) -> None:
        console = Console(stderr=True)
        is_plain = plain or not console.is_interactive
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            *([BarColumn()] if total is not None else []),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=is_plain or not enabled,
        )
        self._first = self.line(title, total)
        self._plain = _PlainLines(title, total) if is_plain and enabled else None

    def line(self, title: str, total: int | None = None) -> Line:
        """Add a line below the others."""
        return Line(self._progress, title, total)

    def show(self, text: str, done: int | None = None) -> None:
        """Set the first line's text, and how much of its total is done."""
        self._first.show(text, done)
        if self._plain is not None:
            self._plain.show(text, done)

    def stage(self, text: str) -> None:
        """Set the first line's text; without a terminal, print it at once."""
        self.show(text)
        if self._plain is not None:
            self._plain.print()

    def note(self, text: str) -> None:
        """Print a permanent line on stderr, with or without a terminal."""
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def __enter__(self) -> Live:
        self._progress.start()
        if self._plain is not None:
            self._plain.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._plain is not None:
            self._plain.stop()


class _PlainLines:
    """Prints the latest text at intervals, from a thread of its own."""

    def __init__(self, title: str, total: int | None) -> None:
        self._title, self._total = title, total
        self._text, self._done = "", None if total is None else 0
        self._started_at = self._printed_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="progress")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def show(self, text: str, done: int | None) -> None:
        self._text = text
        self._done = self._done if done is None else done

    def print(self) -> None:
        share = ""
        if self._total and self._done is not None:
            share = f", {min(self._done / self._total, 1):.0%}"
        self._printed_at = time.monotonic()
        elapsed = format_seconds(self._printed_at - self._started_at)
        with contextlib.suppress(OSError, ValueError):  # stderr was closed
            # In a terminal a command's own progress bar may be on the line; it is drawn again.
            start = "\r\033[K" if sys.stderr.isatty() else ""
            text = f"{start}{self._title}: {self._text}{share} ({elapsed})"
            print(text, file=sys.stderr, flush=True)

    def _run(self) -> None:
        interval = _INTERVAL
        while not self._stopped.wait(interval):
            now = time.monotonic()
            if self._text and now - self._printed_at >= interval / 2:  # else a stage was printed
                self.print()
            elapsed = now - self._started_at
            interval = min(max(_INTERVAL, elapsed / 10), _MAX_INTERVAL)
