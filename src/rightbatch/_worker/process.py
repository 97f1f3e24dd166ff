"""The parent's side of a probe: starts the process, sends sizes, understands how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rightbatch._worker.child import Child
from rightbatch._worker.records import Failure, Outcome, Probe
from rightbatch._worker.wire import Header

EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc's malloc keeps freed memory for later, which blurs small measurements by hundreds of MiB.
With these every tensor is mapped and unmapped by itself, and the resident peak is what the steps
need, on a straight line in the batch size. Other systems ignore the variables."""


@dataclass(frozen=True)
class Ready:
    """What the process said of its device and of the workload before the first size.

    `capability` is a CUDA device's compute capability; None for others.
    """

    device: str
    capacity_bytes: int
    limit_bytes: int
    ceiling_bytes: int
    enforced: bool
    capability: float | None = None
    examples: int | None = None


@dataclass(frozen=True)
class Followed:
    """`answers` has one mapping a task: `outcome`, and `trace` or `failure`. The others are those
    of `Follower`; `at_least` are bytes that a step needs in any case."""

    answers: list[dict[str, Any]]
    how: str = "fake"
    notes: list[str] = field(default_factory=list)
    examples: int | None = None
    at_least: int | None = None


class BuildError(Exception):
    """The session could not be built. `outcome` is as in `Probe`; `ready` as far as known."""

    def __init__(self, outcome: Outcome, failure: Failure, ready: Ready | None) -> None:
        super().__init__(failure.message)
        self.outcome = outcome
        self.failure = failure
        self.ready = ready


class ProbeProcess:
    """One process that runs sizes one after the other; a context manager that ends it.

    It imports at once and waits; the device is touched with the first `run`. The ceiling is the
    smaller of `limit` and what the device has, less the margin, and is enforced where that can be.
    """

    def __init__(self, header: Header, number: int, *, exact: bool = False) -> None:
        self.number = number
        self.ready: Ready | None = None
        self._about: dict[str, Any] = {}
        self._awake = False
        self._child = Child("rightbatch._worker", header, EXACT_MALLOC if exact else None)

    def run(
        self,
        batch_size: int,
        steps: int,
        limit: int | None = None,
        most_steps: int | None = None,
        enough: tuple[int, int] = (0, 0),
    ) -> Probe:
        """Run training steps and one evaluation; `limit` is heard with the first run.

        At least `steps`, and more of them up to `most_steps` while the charge still grows. With
        `enough` of (steps, bytes) it ends after so many steps if its charge is below the bytes.

        Raises:
            BuildError: if the session could not even be built.
        """
        started = time.perf_counter()
        most = most_steps or steps
        about = {"steps": steps, "most_steps": most, "enough": enough}
        self._child.send(batch_size=batch_size, limit=limit, **about)
        while (report := self._child.receive()) is not None:
            event = report.pop("event")
            if event == "probe":
                failure = report.pop("failure", None)
                return Probe(
                    process=self.number,
                    failure=Failure(**failure) if failure else None,
                    **report,
                )
            if event == "build":
                raise BuildError(report["outcome"], Failure(**report["failure"]), self.ready)
            if event in ("device", "ready"):
                self._about |= report
                self.ready = Ready(**self._about)
            if event == "ready":
                started = time.perf_counter()
        return self._ended(batch_size, time.perf_counter() - started)

    def follow(self, tasks: Sequence[Mapping[str, Any]]) -> Followed:
        """Traces of the step, as `rightbatch._predict.follow` makes them.

        A task has a `batch_size`, and fields of `Variant`. May be asked again and again, but not of
        a process that ran.
        """
        self._child.send(follow=[dict(task) for task in tasks])
        while (report := self._child.receive()) is not None:
            event = report.pop("event")
            if event == "follow":
                return Followed(**report)
            if event == "build":
                return Followed([report] * len(tasks))
        _, failure = self._child.death()
        return Followed([{"outcome": "failed", "failure": vars(failure)}] * len(tasks))

    def time(
        self,
        batch_size: int,
        seconds: float = 0.0,
        limit: int | None = None,
        precision: str | None = None,
    ) -> dict[str, Any]:
        """Training steps on ordinary examples for some `seconds`, one at least.

        Returns `outcome`, `steps` (each the fields of `StepSeconds`), the mean `watts` where the
        device tells, and `values_per_channel`, the least that a BatchNorm had; or `failure`.

        Raises:
            BuildError: if the session could not even be built.
        """
        about = {"seconds": seconds, "limit": limit, "precision": precision}
        self._child.send(time=batch_size, **about)
        return self._answer("timed")

    def pilot(
        self, plan: Mapping[str, Any], limit: int | None, show: Callable[[str], object]
    ) -> dict[str, Any]:
        """A short training as `rightbatch._tune.pilot.PilotPlan` says; the fields of `PilotReport`.

        Raises:
            BuildError: if it fails; its outcome says whether for want of memory.
        """
        self._child.send(pilot=dict(plan), limit=limit)
        return self._answer("pilot", show)

    def branches(
        self, tries: Sequence[Mapping[str, Any]], examples: int, show: Callable[[str], object]
    ) -> list[dict[str, Any]]:
        """What becomes of the pilot's training at several sizes; after `pilot`.

        Raises:
            BuildError: if one fails.
        """
        self._child.send(branches=[dict(one) for one in tries], examples=examples)
        found: list[dict[str, Any]] = self._answer("branches", show)["found"]
        return found

    def _answer(
        self, event: str, show: Callable[[str], object] = lambda text: None
    ) -> dict[str, Any]:
        while (report := self._child.receive()) is not None:
            said = report.pop("event")
            if said == event:
                return report
            if said == "shown":
                show(report["text"])
            elif said == "build":
                raise BuildError(report["outcome"], Failure(**report["failure"]), self.ready)
            elif said in ("device", "ready"):
                self._about |= report
                self.ready = Ready(**self._about)
        outcome, failure = self._child.death()
        raise BuildError(outcome, failure, self.ready)

    def stop(self) -> None:
        """End the process; its workers end with it."""
        self._child.stop()

    def __enter__(self) -> ProbeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ended(self, batch_size: int, seconds: float) -> Probe:
        outcome, failure = self._child.death()
        if "examples" not in self._about:
            raise BuildError(outcome, failure, self.ready)
        return Probe(
            batch_size,
            outcome,
            seconds,
            self.number,
            failure=failure,
        )
