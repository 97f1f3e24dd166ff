"""A run's process as the sweep sees it: started, listened to, understood when it dies."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rightbatch._study.records import Ended, Point
from rightbatch._study.runs.plan import RunPlan
from rightbatch._worker.child import Child
from rightbatch._worker.process import EXACT_MALLOC
from rightbatch._worker.records import Failure
from rightbatch._worker.wire import Header


@dataclass(frozen=True)
class Said:
    """What came from a run: points, an event of `Elastic`, or its end."""

    points: tuple[Point, ...] = ()
    event: dict[str, Any] | None = None
    ended: Ended | None = None


def said_by(
    header: Header,
    plan: RunPlan,
    *,
    threads: int | None = None,
    on_start: Callable[[Child], object] = lambda child: None,
) -> Iterator[Said]:
    """Train in a process of its own, and say what comes of it; the last that is said is its end.

    A process that dies without a word is out of memory where the system killed it for that, and
    has failed otherwise. Closing the iterator kills it. `threads` are the CPU's for this run.

    Raises:
        UsageError: if the factory is none; every run would fail so.
        WorkloadError: if it cannot even be loaded.
    """
    environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if plan.options.memory is not None:  # freed memory that malloc keeps would count as used
        environment |= EXACT_MALLOC
    with Child("rightbatch._study.runs", header, environment=environment) as child:
        child.send_bytes(pickle.dumps(plan))
        on_start(child)
        last = Point(0, 0, 0.0, 0.0, {}, 0.0)
        while (report := child.receive()) is not None:
            event = report.pop("event")
            if event == "points":
                points = tuple(Point(**point) for point in report["points"])
                last = points[-1]
                yield Said(points=points)
            elif event == "happened":
                yield Said(event=report["what"])
            elif event == "ended":
                yield Said(ended=Ended(**report["ended"]))
                return
            elif event == "broken":
                raise Failure(**report["failure"]).as_error("the workload cannot be loaded")
        outcome, failure = child.death()
        yield Said(
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
    """The CPU's threads for each of so many runs at a time; None leaves them alone."""
    return None if jobs == 1 else max(1, (os.cpu_count() or 1) // jobs)
