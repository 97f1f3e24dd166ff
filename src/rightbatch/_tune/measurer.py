"""`Measurer`: who measures a training for `tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rightbatch._fit.result import FitResult
from rightbatch._tune.branches import BranchPlan
from rightbatch._tune.pilot import PilotReport
from rightbatch._tune.plan import Branch
from rightbatch._workload.workload import StepSeconds


@dataclass(frozen=True)
class Timed:
    """Steps that were timed, all results by micro-batch size.

    `samples` are raw step times, `watts` the power where the device reports energy, `values` the
    smallest number of values per channel of a BatchNorm. `bf16` is the speed-up in bf16, None if it
    was not measured.
    """

    samples: dict[int, list[StepSeconds]]
    watts: dict[int, list[float]] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)
    bf16: float | None = None

    def nearest(self, size: int) -> list[StepSeconds]:
        """Return the samples of the timed size that is nearest to `size`."""
        return self.samples[min(self.samples, key=lambda timed: abs(timed - size))]


class Measurer(Protocol):
    """Measures a training: in workers, or as commands that run.

    With `accumulates` a batch can be made of several micro-batches. All methods raise
    `WorkloadError` if the training fails.
    """

    @property
    def accumulates(self) -> bool: ...

    def fit(self) -> FitResult:
        """Return the largest batch that fits."""

    def time(self, largest: FitResult, seconds: float) -> Timed:
        """Time steps of sizes up to the largest, for about `seconds`."""

    def pilot(self, base: int, largest: FitResult, seconds: float) -> PilotReport:
        """Train at the batch size `base` for about `seconds`."""

    def branches(self, plans: Sequence[BranchPlan], examples: int) -> tuple[Branch, ...]:
        """Train branches from the end of the pilot."""

    def command_line(self, size: int, micro: int, rate_factor: float) -> str | None:
        """Return the command that trains with a batch size; None if it is no command."""

    def stop(self) -> None:
        """End what is running."""
