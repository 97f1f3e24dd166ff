"""A `Workload` factory as a `Training`; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rightbatch._errors import UsageError
from rightbatch._training.protocol import Ability, LoopPlan, Observer, Session, Training
from rightbatch._workload.factory import CalledWith, Factory, FileFactory

if TYPE_CHECKING:
    from rightbatch._training.distributed import Processes
    from rightbatch._training.loop import WorkloadLoop
    from rightbatch._workload.workload import Workload


@dataclass(frozen=True)
class WorkloadTraining(Training):
    """The training of a `Workload` that a factory builds: a function, or one in a file."""

    factory: Factory | FileFactory | CalledWith

    integration = "a Workload"
    abilities = frozenset(Ability) - {Ability.SETTINGS, Ability.TRIAL, Ability.WATCH}

    def load(self) -> WorkloadTraining:
        """Import the factory from its file, if it has one."""
        if isinstance(self.factory, FileFactory | CalledWith):
            return WorkloadTraining(self.factory.load())
        return self

    def build(self) -> Workload:
        """Call the factory.

        Raises:
            UsageError: if it does not return a workload.
        """
        return checked(self.factory())

    def session(self, device: str, *, seed: int, inference: bool) -> Session:
        """Open a plain PyTorch loop on the examples that need the most memory."""
        from rightbatch._training.session import InferenceSession, WorkloadSession

        kind = InferenceSession if inference else WorkloadSession
        return kind(self.build(), device, seed=seed)

    @contextmanager
    def loop(
        self, plan: LoopPlan, processes: Processes, observers: Sequence[Observer]
    ) -> Iterator[WorkloadLoop]:
        """Build the workload from the plan's seed, and open its loop.

        The caller's random states are restored at the end.
        """
        from rightbatch._device.random_state import random_state, seed_all, set_random_state
        from rightbatch._training.loop import WorkloadLoop

        before = random_state(processes.device)
        try:
            seed_all(plan.seed)
            workload = self.build()
            seed_all(plan.seed + processes.rank)  # dropout differs between processes
            yield WorkloadLoop(workload, plan, processes, observers)
        finally:
            set_random_state(before, processes.device)


def checked(made: Any) -> Workload:
    """Return a factory's result, checked to be a `Workload`.

    Raises:
        UsageError: if it is not.
    """
    from rightbatch._workload.workload import Workload

    if not isinstance(made, Workload):
        raise UsageError(
            f"the factory returned {type(made).__name__}, expected a rightbatch.Workload"
        )
    return made
