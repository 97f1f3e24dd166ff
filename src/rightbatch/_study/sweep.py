"""The sweep: which runs are still to be trained, several at a time if asked, each to its end."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, Protocol

from rightbatch._study.records import Ended, Point, RunKey
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.runs.process import RunEvent

TRIES = 3
"""At a run whose machine or worker is lost; it may be the run itself that brings it down."""


class Place(Protocol):
    """Where runs are trained: processes of this machine, or a cluster."""

    @property
    def jobs(self) -> int:
        """How many runs it takes at a time."""

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        """Train, and say what comes of it, the end last; closing the iterator ends the run.

        Raises:
            LostError: if the place lost the run; it may be asked for it again.
        """

    def stop(self) -> None:
        """End all runs at once, from another thread than those that listen; no more will come."""


class Log(Protocol):
    """Where a run is written down."""

    def points(self, points: Sequence[Point]) -> object: ...

    def ended(self, ended: Ended, events: Sequence[dict[str, Any]]) -> object: ...


class Board(Protocol):
    """Who sees how it goes."""

    def began(self, key: RunKey) -> object: ...

    def went(self, key: RunKey, points: Sequence[Point]) -> object: ...

    def ended(self, key: RunKey, ended: Ended) -> object: ...


class Judge(Protocol):
    """Who may end a run that has no hope."""

    def verdict(self, key: RunKey, points: Sequence[Point]) -> str | None:
        """Why the run ends here; None lets it go on. Called from several threads."""

    def ended(self, key: RunKey, ended: Ended) -> object:
        """The run is over, or is begun anew."""


class Stopped(Exception):
    """The sweep was stopped from outside; runs in flight are to be begun anew."""


class LostError(Exception):
    """Where a run was trained is gone, which says nothing of the run; the message says how."""


class Sweep:
    """Trains runs at a place, and writes them down.

    An error that every run would meet (a factory that cannot be loaded) ends the sweep; all else
    that becomes of a run is its result.
    """

    def __init__(
        self,
        place: Place,
        begin: Callable[[RunPlan], Log],
        board: Board,
        *,
        jobs: int = 1,
        judge: Judge | None = None,
    ) -> None:
        self._place, self._begin, self._board = place, begin, board
        self._jobs, self._judge = jobs, judge
        self._stopped = threading.Event()

    def run(self, plans: Iterator[RunPlan] | Sequence[RunPlan]) -> dict[RunKey, Ended]:
        """Train all of them, `jobs` at a time, in their order.

        Raises:
            KeyboardInterrupt: as it came, once all processes are gone.
            UsageError, WorkloadError: if the workload cannot be loaded.
        """
        todo = iter(plans)
        found: dict[RunKey, Ended] = {}
        running: dict[Future[Ended], RunKey] = {}
        with ThreadPoolExecutor(self._jobs, "rightbatch-run") as pool:
            try:
                while True:
                    while len(running) < self._jobs and (plan := next(todo, None)) is not None:
                        running[pool.submit(self.train, plan)] = plan.key
                    if not running:
                        return found
                    # A wait without end would not hear Ctrl-C on Windows.
                    done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        key = running.pop(future)
                        found[key] = future.result()
            except BaseException:
                self._stopped.set()
                self._place.stop()
                raise

    def train(self, plan: RunPlan) -> Ended:
        """One run to its end; begun anew where the machine or the worker that had it is lost."""
        key = plan.key
        log = self._begin(plan)
        self._board.began(key)
        for tries in itertools.count(1):
            events: list[dict[str, Any]] = []
            try:
                ended = self._heard(plan, log, events)
                break
            except LostError as lost:
                if self._stopped.is_set():
                    raise Stopped from lost
                if tries == TRIES:
                    ended = Ended("failed", f"{lost}, as in the {TRIES - 1} tries before")
                    break
                # The newest try is the one that counts: it is there before the old one ends.
                abandoned, log = log, self._begin(plan)
                stopped = Ended("stopped", f"{lost}; begun anew")
                abandoned.ended(stopped, events)
                if self._judge:
                    self._judge.ended(key, stopped)
        if self._judge:
            self._judge.ended(key, ended)
        log.ended(ended, events)
        self._board.ended(key, ended)
        return ended

    def _heard(self, plan: RunPlan, log: Log, events: list[dict[str, Any]]) -> Ended:
        """A try at a run, written down as it goes."""
        key = plan.key
        ended: Ended | None = None
        with closing(self._place.stream_events(plan)) as saying:  # type: ignore[type-var]
            for said in saying:
                if self._stopped.is_set():
                    raise Stopped
                if said.points:
                    log.points(said.points)
                    self._board.went(key, said.points)
                    why = self._judge.verdict(key, said.points) if self._judge else None
                    if why is not None:
                        ended = _hopeless(why, said.points[-1])
                        break
                if said.event is not None:
                    events.append(said.event)
                ended = said.ended or ended
        if self._stopped.is_set():
            raise Stopped
        if ended is None:
            raise RuntimeError(f"the place said nothing of the end of {key}")
        return ended


def _hopeless(why: str, last: Point) -> Ended:
    return Ended(
        "stopped",
        why,
        steps=last.steps,
        examples=int(last.examples),
        seconds=last.seconds,
        epochs=last.epochs,
        metrics={name: value for name, value in last.values.items() if math.isfinite(value)},
    )
