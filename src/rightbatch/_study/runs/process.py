"""A run's process as the sweep sees it: started, listened to, understood when it dies."""

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
    """What came from a run: points, an event of `Elastic`, or its end."""

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
    """Train in a process of its own, and yield what comes of it; the last event is its end.

    A process that dies without a report is out of memory where the system killed it for that, and
    has failed otherwise. Closing the iterator kills it. `threads` are the CPU's for this run.

    Raises:
        UsageError: if the factory is none; every run would fail so.
        WorkloadError: if it cannot even be loaded.
    """
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if (
        plan.options.memory is not None
    ):  # freed memory that malloc keeps would count against the limit
        environment |= EXACT_MALLOC
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
    """Return the CPU's threads for each of so many runs at a time; None leaves them alone."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
