"""Where runs are trained: this machine, or a cluster of an integration."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points

from rightbatch._errors import UsageError
from rightbatch._study.options import StudyOptions
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent, stream_events, threads_of
from rightbatch._study.sweep import Place
from rightbatch._worker.child import Child
from rightbatch._worker.wire import Header


class ThisMachine:
    """Trains each run in a process, `jobs` at a time, which share the CPU's threads."""

    def __init__(self, header: Header, jobs: int) -> None:
        self._header, self._threads, self.jobs = header, threads_of(jobs), jobs
        self._children: set[Child] = set()
        self._lock = threading.Lock()
        self._is_stopped = False

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        """As in `Place`."""
        started: list[Child] = []

        def on_start(child: Child) -> None:
            started.append(child)
            with self._lock:
                self._children.add(child)
                if self._is_stopped:
                    child.kill()

        try:
            yield from stream_events(self._header, plan, threads=self._threads, on_start=on_start)
        finally:
            with self._lock:
                self._children.difference_update(started)

    def stop(self) -> None:
        """As in `Place`."""
        with self._lock:
            self._is_stopped = True
            for child in self._children:
                child.kill()


@contextmanager
def opened(on: str | None, header: Header, options: StudyOptions) -> Iterator[Place]:
    """Open the place named `on` (None: this machine), and stop it at the end.

    Integrations register places in the entry point group `rightbatch.places`: functions of the
    header and, as `study`, the options.

    Raises:
        UsageError: if there is no place of that name.
    """
    place: Place
    if on is None:
        place = ThisMachine(header, options.jobs)
    else:
        known = {found.name: found for found in entry_points(group="rightbatch.places")}
        if on not in known:
            raise UsageError(f"on is one of {', '.join(sorted(known)) or 'none'}, not {on!r}")
        place = known[on].load()(header, study=options)
    try:
        yield place
    finally:
        place.stop()
