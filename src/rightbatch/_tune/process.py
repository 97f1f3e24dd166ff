"""The parent's side of a worker that times steps and trains a pilot and branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rightbatch._tune.branches import BranchPlan
from rightbatch._tune.pilot import PilotPlan, PilotReport
from rightbatch._tune.plan import Branch
from rightbatch._worker import Failure, Outcome, Worker
from rightbatch._workload.workload import StepSeconds


@dataclass(frozen=True)
class TimedSteps:
    """Timed steps of one size, or the failure that ended them.

    `watts` is the mean power, None if the device does not report energy; `values_per_channel` the
    smallest of all BatchNorm layers.
    """

    outcome: Outcome
    steps: tuple[StepSeconds, ...] = ()
    watts: float | None = None
    values_per_channel: int | None = None
    failure: Failure | None = None


class TuneProcess(Worker):
    """A worker with a memory limit; only the first command's `limit` (bytes) counts."""

    entry = "rightbatch._tune.worker:run"

    def time(
        self,
        batch_size: int,
        seconds: float = 0.0,
        limit: int | None = None,
        precision: str | None = None,
    ) -> TimedSteps:
        """Time training steps on ordinary examples for `seconds`, at least one.

        Raises:
            BuildError: if the session could not be built.
        """
        about = {"seconds": seconds, "limit": limit, "precision": precision}
        report = self.ask({"time": batch_size, **about}, "timed")
        failure = report.pop("failure", None)
        steps = tuple(StepSeconds(**step) for step in report.pop("steps", ()))
        return TimedSteps(steps=steps, failure=Failure(**failure) if failure else None, **report)

    def pilot(
        self, plan: PilotPlan, limit: int | None, show: Callable[[str], object]
    ) -> PilotReport:
        """Train a pilot.

        Raises:
            BuildError: if it fails; its `outcome` says whether memory ran out.
        """
        report = self.ask({"pilot": asdict(plan), "limit": limit}, "pilot", show)
        return PilotReport.from_dict(report)

    def branches(
        self, plans: Sequence[BranchPlan], examples: int, show: Callable[[str], object]
    ) -> tuple[Branch, ...]:
        """Train branches from the end of the pilot; call `pilot` first.

        Raises:
            BuildError: if one fails.
        """
        command = {"branches": [asdict(plan) for plan in plans], "examples": examples}
        found = self.ask(command, "branches", show)["found"]
        return tuple(Branch(**branch) for branch in found)
