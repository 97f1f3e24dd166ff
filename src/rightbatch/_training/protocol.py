"""`Training`: what every verb is given, with the abilities that it declares.

A `Training` is a description that can be sent to another process. There it is loaded, and makes one
of two things: a `Session`, whose steps have any size (`fit`, step times, `predict`), or a
`TrainingLoop`, which goes through epochs and calls observers at the boundaries of its steps
(`train`, `tune`, `study`). A framework's integration implements it once and passes
`rightbatch.testing.TrainingContract`; then every verb works with it, or refuses it by name for an
ability that it does not declare. Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rightbatch._errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rightbatch._elastic import Event
    from rightbatch._noise import Part
    from rightbatch._training.distributed import Processes
    from rightbatch._training.facts import TrainingFacts
    from rightbatch._training.state import TrainingState
    from rightbatch._workload.workload import Precision, StepSeconds

Betas = tuple[float, float] | None
"""Of Adam and its kin; None for SGD."""


class Ability(Enum):
    """What a training can do. The value says it in words; `WAY_ROUND` what to do without it.

    STEP and EVALUATE are about `session`, LOOP and SETTINGS about `loop`. FOLLOW needs a session
    that is a `rightbatch._predict.follow_framework.FollowableSession`. BRANCH, RESUME, GROW,
    DISTRIBUTE and CURVATURE need what only `WorkloadLoop` has so far.
    """

    STEP = "training steps of any size"
    EVALUATE = "evaluation of batches of any size"
    FOLLOW = "a step that can be followed on the CPU"
    LOOP = "a loop with observers at its steps"
    BRANCH = "branches from one state of the training"
    RESUME = "resuming from a checkpoint"
    GROW = "a batch size that changes during the training"
    DISTRIBUTE = "several processes that train together"
    CURVATURE = "second derivatives of the loss"
    SETTINGS = "settings of its framework"


WAY_ROUND = {
    Ability.STEP: "measure its inference (inference=True, --inference)",
    Ability.EVALUATE: "measure its training, or evaluate in your own loop",
    Ability.FOLLOW: "`rightbatch fit` measures it, on a machine that has the device",
    Ability.LOOP: "describe the training as a rightbatch.Workload",
    Ability.BRANCH: "leave --verify out, or describe the training as a rightbatch.Workload",
    Ability.RESUME: "resume with the framework's own trainer",
    Ability.GROW: "give a fixed batch, or describe the training as a rightbatch.Workload",
    Ability.DISTRIBUTE: "leave --processes out, or describe the training as a rightbatch.Workload",
    Ability.CURVATURE: "leave --sharpness out, or describe the training as a rightbatch.Workload",
    Ability.SETTINGS: "set it where the workload is built",
}


@dataclass(frozen=True)
class LoopPlan:
    """How a loop trains.

    `batch_size` examples an update, in parts of `micro_batch_size` (`"auto"`: found at the first
    step, within `memory` less `margin`), for `epochs`. A schedule is made for `schedule_epochs`
    (default: as many), and goes by steps, or by examples where the batch size changes on the way.
    `factors(betas)` returns the factors on the batch size and on the learning rate that the
    optimizer's settings are scaled by. `out` is a folder for what a framework's own trainer writes;
    without it nothing is kept. `settings` are arguments of that trainer.
    """

    batch_size: int
    epochs: int
    micro_batch_size: int | str = "auto"
    schedule_epochs: int | None = None
    schedule_by_examples: bool = False
    factors: Callable[[Betas], tuple[float, float]] | None = None
    seed: int = 0
    memory: int | str | None = None
    margin: float = 0.05
    out: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class BatchTooLargeError(Exception):
    """A batch that the data set does not fill."""


class Session(Protocol):
    """Runs steps of any size; lives in a worker's process."""

    @property
    def examples(self) -> int | None:
        """How many examples one epoch has; None where nobody knows."""

    @property
    def varies(self) -> bool:
        """Whether an epoch's full batches differ in shape; a probe then runs more of them."""

    def step(self, batch_size: int) -> None:
        """Run one full training step (forward, backward, optimizer) on the worst examples."""

    def evaluate(self, batch_size: int) -> int:
        """Evaluate one batch without gradients; returns how many examples it held.

        That is `batch_size`, or what the framework validates with beside such a training batch.
        """

    def timed_step(self, batch_size: int, precision: Precision | None = None) -> StepSeconds:
        """Run one training step on ordinary examples, in another `precision` if asked.

        The device has ended its work when a part's time is taken. The loss' value is of no use.
        """

    def modules(self) -> Sequence[nn.Module]:
        """Return what stays on the device; the trained model is the first."""

    def close(self) -> None:
        """Stop workers, delete temporary files."""


class StepLoss(Protocol):
    """What an observer is told of an update; `Elastic`'s `StepReport` is one."""

    @property
    def mean_loss(self) -> Tensor:
        """The mean loss over this process' batch, a scalar on the device."""


class TrainingLoop(Protocol):
    """A training that goes through epochs, as its observers see it.

    An implementation calls them through `rightbatch._training.observers.Observers`, and makes its
    updates with `rightbatch.Elastic`, so that memory that runs out is survived and observed.
    """

    plan: LoopPlan
    state: TrainingState
    processes: Processes

    @property
    def device(self) -> torch.device: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def examples(self) -> int:
        """Of one epoch; 0 before it is known."""

    @property
    def population(self) -> int | None:
        """The examples of an epoch, where each is the same whenever it is drawn; else None."""

    @property
    def micro_batch_size(self) -> int | None:
        """Examples that are run at once; None before the first step."""

    @property
    def facts(self) -> TrainingFacts:
        """What advice depends on."""

    @property
    def learning_rate(self) -> float | None:
        """The rate that it is configured with, after scaling and without its schedule."""

    @property
    def is_evaluated(self) -> bool:
        """Whether `evaluate` measures anything."""

    def evaluate(self) -> dict[str, float]:
        """Measure what is measured after an epoch; the random states are as before."""

    def micro_batches(self, most: int | None = None) -> Iterator[Part]:
        """Yield micro-batches at the weights of now, no example twice, `most` examples at once."""

    def stop(self, reason: str) -> None:
        """End the training after this step."""

    def run(self) -> TrainingState:
        """Train to the end."""


class Observer:
    """What is called at the boundaries of a training's steps; subclass and override.

    `counts_as_training` says whether the time spent in it is part of the training's seconds.
    """

    counts_as_training = True

    def on_start(self, loop: Any) -> None:
        """Before the first step, or the first after a resume."""

    def on_step(self, loop: Any, report: StepLoss) -> None:
        """After an update."""

    def measure_epoch(self, loop: Any) -> Mapping[str, float]:
        """Return metrics at the end of an epoch; those of all observers become the state's."""
        return {}

    def on_epoch(self, loop: Any) -> None:
        """After an epoch, when the state has its metrics."""

    def on_event(self, loop: Any, event: Event) -> None:
        """When memory ran out, or the micro-batch or batch size changed."""

    def on_end(self, loop: Any) -> None:
        """After the last step, however it came to be the last."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this observer."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""


class Training(ABC):
    """A training as the verbs are given it; the default methods are those of one without abilities.

    Subclass it: declare `integration` and `abilities`, and override what the abilities need.
    """

    @property
    @abstractmethod
    def integration(self) -> str:
        """The name of the framework, for messages."""

    @property
    @abstractmethod
    def abilities(self) -> frozenset[Ability]:
        """What this training can do."""

    @property
    def base_batch(self) -> int | None:
        """The batch size that its learning rate is for; None if only its author knows.

        A framework that has one keeps to its own learning-rate rule in `train`, and its rates are
        linear in the batch size in `study`.
        """
        return None

    @property
    def loss_may_rise(self) -> bool:
        """Whether a healthy training's loss may rise far above its first value.

        A detector's does, from next to nothing, as its objects are found.
        """
        return False

    def metric_name(self, name: str) -> str:
        """Return the name under which a metric is logged that a person calls `name`."""
        return name

    def load(self) -> Training:
        """Import what it needs, in the process that will run it, before anything is measured."""
        return self

    def session(self, device: str, *, seed: int, inference: bool) -> Session:
        """Open a session; needs `Ability.STEP`, or `Ability.EVALUATE` for `inference`."""
        raise _undeclared(self, Ability.EVALUATE if inference else Ability.STEP)

    def loop(
        self, plan: LoopPlan, processes: Processes, observers: Sequence[Observer]
    ) -> AbstractContextManager[TrainingLoop]:
        """Open a loop that trains as planned; needs `Ability.LOOP`."""
        raise _undeclared(self, Ability.LOOP)


def _undeclared(training: Training, ability: Ability) -> UsageError:
    return UsageError(
        f"{training.integration} offers no {ability.value} here: {WAY_ROUND[ability]}"
    )


def require(training: Training, ability: Ability, verb: str) -> None:
    """Refuse a verb for a training without an ability that it needs.

    Raises:
        UsageError: naming the verb, the integration, the ability, and the way round.
    """
    if ability not in training.abilities:
        raise UsageError(
            f"{verb} needs {ability.value}, which {training.integration} does not offer here: "
            f"{WAY_ROUND[ability]}"
        )
