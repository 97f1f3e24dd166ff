"""The parent's side of a run's process: starts it, receives its events, and reports a crash."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rightbatch._study.records import Ended, Point
from rightbatch._study.runs.plan import RunPlan
from rightbatch._worker import Failure, Header
from rightbatch._worker.child import Child
from rightbatch._worker.dialogue import EXACT_MALLOC

_ENTRY = "rightbatch._study.runs.worker:run"


@dataclass(frozen=True)
class RunEvent:
    """News of a run: points, an event of `Elastic`, or its end."""

    points: tuple[Point, ...] = ()
    event: dict[str, Any] | None = None
    ended: Ended | None = None


def stream_events(
    header: Header,
    plan: RunPlan,
    *,
    threads: int | None = None,
    on_start: Callable[[Child], object] = lambda child: None,
) -> Iterator[RunEvent]:
    """Train in a worker process, and yield its events; the last one is its end.

    A process that dies without a report ended out of memory if the system killed it for that, else
    it failed. Closing the iterator kills it. `threads` is the number of CPU threads of the run.

    Raises:
        UsageError: if the workload is not a factory; every run would fail.
        WorkloadError: if the workload cannot be loaded.
    """
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if plan.options.memory is not None:
        environment |= EXACT_MALLOC  # else freed memory that malloc keeps counts against the limit
    with Child(replace(header, entry=_ENTRY), environment=environment) as child:
        child.send(plan=pickle.dumps(plan).hex())
        on_start(child)
        last = Point(0, 0, 0.0, 0.0, {}, 0.0)
        while (report := child.receive()) is not None:
            event = report.pop("event")
            if event == "points":
                points = tuple(Point(**point) for point in report["points"])
                last = points[-1]
                yield RunEvent(points=points)
            elif event == "happened":
                yield RunEvent(event=report["what"])
            elif event == "ended":
                yield RunEvent(ended=Ended(**report["ended"]))
                return
            elif event in ("build", "broken"):
                raise Failure(**report["failure"]).as_error("the workload cannot be loaded")
        outcome, failure = child.death()
        yield RunEvent(
            ended=Ended(
                "out_of_memory" if outcome == "killed" else "failed",
                failure.message,
                steps=last.steps,
                examples=int(last.examples),
                seconds=last.seconds,
                epochs=last.epochs,
                error=dict(vars(failure)),
            )
        )


def threads_of(jobs: int) -> int | None:
    """Return the CPU threads of each of `jobs` runs at a time; None keeps the default."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
