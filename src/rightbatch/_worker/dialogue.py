"""The parent's side of a worker: sends commands, receives reports, and detects its failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from rightbatch._worker.child import Child
from rightbatch._worker.failure import Failure, Outcome
from rightbatch._worker.wire import Header

EXACT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc's malloc keeps freed memory, which distorts small measurements by hundreds of MiB. With
these variables every tensor is mapped and unmapped individually, and the resident peak is what the
steps need, linear in the batch size. Other systems ignore the variables."""


@dataclass(frozen=True)
class Ready:
    """What a worker reported about its device and training before the first answer.

    `capability` is the compute capability of a CUDA device, else None. `examples` is the number in
    one epoch; None if unknown, or if the training is not built yet. `notes` say what the answers
    rest on.
    """

    device: str
    capacity_bytes: int
    limit_bytes: int
    ceiling_bytes: int
    enforced: bool
    capability: float | None = None
    examples: int | None = None
    notes: Sequence[str] = ()


class BuildError(Exception):
    """The worker failed before its first answer, or outside of a command.

    `outcome` is that of `Probe`; `ready` is None if the device was not reported yet.
    """

    def __init__(self, outcome: Outcome, failure: Failure, ready: Ready | None) -> None:
        super().__init__(failure.message)
        self.outcome = outcome
        self.failure = failure
        self.ready = ready


class Worker:
    """A process that runs `entry`; a context manager that ends it.

    It imports at once and waits; the first command opens the device.
    """

    entry: str

    def __init__(self, header: Header, *, environment: Mapping[str, str] | None = None) -> None:
        self.ready: Ready | None = None
        self.is_built = False
        self._about: dict[str, Any] = {}
        self._child = Child(replace(header, entry=self.entry), environment)

    def ask(
        self,
        command: Mapping[str, Any],
        answer: str,
        show: Callable[[str], object] = lambda text: None,
    ) -> dict[str, Any]:
        """Send a command and return the report named `answer`; `show` is called with progress.

        Raises:
            BuildError: if the worker fails or dies before it answers.
        """
        self._child.send(**command)
        while (report := self._child.receive()) is not None:
            event = report.pop("event")
            if event == answer:
                return report
            if event == "progress":
                show(report["text"])
            elif event == "build":
                raise BuildError(report["outcome"], Failure(**report["failure"]), self.ready)
            elif event in ("device", "ready"):
                self._about |= report
                self.ready = Ready(**self._about)
                self.is_built = self.is_built or event == "ready"
        outcome, failure = self._child.death()
        raise BuildError(outcome, failure, self.ready)

    def stop(self) -> None:
        """Kill the process and its children."""
        self._child.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
