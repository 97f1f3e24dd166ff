"""The sweep: trains runs, several at a time, and stores how each one ends."""

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
"""Attempts at a run whose machine or worker is lost, since the run itself may be the cause."""


class Place(Protocol):
    """Where runs are trained: processes of this machine, or a cluster."""

    @property
    def jobs(self) -> int:
        """The number of runs at a time."""

    def stream_events(self, plan: RunPlan) -> Iterator[RunEvent]:
        """Train a run and yield its events, the end last; closing the iterator ends the run.

        Raises:
            LostError: if the place lost the run; it can be started again.
        """

    def stop(self) -> None:
        """Kill all runs at once, and start no more; called from another thread."""


class Log(Protocol):
    """Where a run is stored."""

    def points(self, points: Sequence[Point]) -> object: ...

    def ended(self, ended: Ended, events: Sequence[dict[str, Any]]) -> object: ...


class Board(Protocol):
    """Where progress is shown."""

    def began(self, key: RunKey) -> object: ...

    def went(self, key: RunKey, points: Sequence[Point]) -> object: ...

    def ended(self, key: RunKey, ended: Ended) -> object: ...


class Judge(Protocol):
    """Decides whether to stop a run early."""

    def verdict(self, key: RunKey, points: Sequence[Point]) -> str | None:
        """Return the reason to stop the run, or None. Called from several threads."""

    def ended(self, key: RunKey, ended: Ended) -> object:
        """The run has ended, or is trained again."""


class Stopped(Exception):
    """The sweep was stopped; its unfinished runs have to be trained again."""


class LostError(Exception):
    """The machine or worker of a run was lost, for no reason of the run; the message says how."""


class Sweep:
    """Trains runs at a place, and stores them.

    An error that every run would have (a factory that cannot be loaded) ends the sweep; any other
    end of a run is its result.
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
        """Train all runs in their order, `jobs` at a time, and return how they ended.

        Raises:
            KeyboardInterrupt: after all processes were killed.
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
                    # On Windows a wait without a timeout would block Ctrl-C.
                    done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        key = running.pop(future)
                        found[key] = future.result()
            except BaseException:
                self._stopped.set()
                self._place.stop()
                raise

    def train(self, plan: RunPlan) -> Ended:
        """Train a run to its end; again if its machine or worker is lost."""
        key = plan.key
        log = self._begin(plan)
        self._board.began(key)
        for tries in itertools.count(1):
            events: list[dict[str, Any]] = []
            try:
                ended = self._attempt(plan, log, events)
                break
            except LostError as lost:
                if self._stopped.is_set():
                    raise Stopped from lost
                if tries == TRIES:
                    ended = Ended("failed", f"{lost}, as in the {TRIES - 1} attempts before")
                    break
                # The newest attempt counts, so it is created before the old one ends.
                abandoned, log = log, self._begin(plan)
                stopped = Ended("stopped", f"{lost}; trained again")
                abandoned.ended(stopped, events)
                if self._judge:
                    self._judge.ended(key, stopped)
        if self._judge:
            self._judge.ended(key, ended)
        log.ended(ended, events)
        self._board.ended(key, ended)
        return ended

    def _attempt(self, plan: RunPlan, log: Log, events: list[dict[str, Any]]) -> Ended:
        """Train a run once, store its points, and add its out-of-memory events to `events`."""
        key = plan.key
        ended: Ended | None = None
        with closing(self._place.stream_events(plan)) as stream:  # type: ignore[type-var]
            for news in stream:
                if self._stopped.is_set():
                    raise Stopped
                if news.points:
                    log.points(news.points)
                    self._board.went(key, news.points)
                    reason = self._judge.verdict(key, news.points) if self._judge else None
                    if reason is not None:
                        ended = _stopped_early(reason, news.points[-1])
                        break
                if news.event is not None:
                    events.append(news.event)
                ended = news.ended or ended
        if self._stopped.is_set():
            raise Stopped
        if ended is None:
            raise RuntimeError(f"the place reported no end of {key}")
        return ended


def _stopped_early(reason: str, last: Point) -> Ended:
    return Ended(
        "stopped",
        reason,
        steps=last.steps,
        examples=int(last.examples),
        seconds=last.seconds,
        epochs=last.epochs,
        metrics={name: value for name, value in last.values.items() if math.isfinite(value)},
    )
