"""`Training`: the argument of every verb, with the abilities that it declares.

A `Training` is a description that can be sent to another process. There it is loaded, and opens
either a `Session`, which runs single steps of any batch size (`fit`, step times, `predict`), or a
`TrainingLoop`, which runs epochs and calls observers between its steps (`train`, `tune`, `study`).
A framework's integration implements it once and passes `rightbatch.testing.TrainingContract`. Then
every verb works with it, or refuses it and names the missing ability. Imports no torch.
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
from rightbatch._workload.sizes import Sizes

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from rightbatch._elastic import Event
    from rightbatch._noise import Part
    from rightbatch._training.distributed import Processes
    from rightbatch._training.facts import TrainingFacts
    from rightbatch._training.state import TrainingState
    from rightbatch._training.trial import Trial, TrialRequest
    from rightbatch._training.watched import Watched, WatchRequest
    from rightbatch._workload.workload import Precision, StepSeconds

Betas = tuple[float, float] | None
"""The decays of an adaptive optimizer (`scaling.betas_of`); None for SGD."""


class Ability(Enum):
    """What a training can do. The value is its description, `WAY_ROUND` the alternative.

    STEP and EVALUATE are about `session`, LOOP and SETTINGS about `loop`. FOLLOW needs a session
    that is a `rightbatch._predict.follow_framework.FollowableSession`. BRANCH, RESUME, GROW,
    DISTRIBUTE and CURVATURE need what only `WorkloadLoop` has so far. TRIAL and WATCH are for
    trainings that are commands.
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
    TRIAL = "trials that are processes of their own"
    WATCH = "a command to watch"


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
    Ability.TRIAL: "describe it as a command: `rightbatch fit -- python train.py --batch {batch}`",
    Ability.WATCH: "describe it as a command: `rightbatch run -- python train.py`",
}


@dataclass(frozen=True)
class LoopPlan:
    """How a loop trains.

    Each update has `batch_size` examples, in parts of `micro_batch_size` (`"auto"`: found at the
    first step, within `memory` less `margin`), for `epochs`; smaller parts, of a measurement, have
    one of `sizes`. A schedule is made for `schedule_epochs` (default: `epochs`), and is stepped by
    updates, or by examples with `schedule_by_examples`. `factors(betas)` returns the factors on the
    batch size and on the learning rate that the optimizer is scaled by. `out` is the folder for the
    files of a framework's trainer; without it no files are kept. `settings` are arguments of that
    trainer.
    """

    batch_size: int
    epochs: int
    micro_batch_size: int | str = "auto"
    sizes: Sizes = field(default_factory=Sizes)
    schedule_epochs: int | None = None
    schedule_by_examples: bool = False
    factors: Callable[[Betas], tuple[float, float]] | None = None
    seed: int = 0
    memory: int | str | None = None
    margin: float = 0.05
    out: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class BatchTooLargeError(Exception):
    """The batch size is too large for the data set."""


class Session(Protocol):
    """Runs steps of any batch size, in a worker process."""

    @property
    def examples(self) -> int | None:
        """The number of examples of one epoch; None if unknown."""

    @property
    def varies(self) -> bool:
        """Whether an epoch's full batches differ in shape; a probe then runs more of them."""

    @property
    def notes(self) -> Sequence[str]:
        """What its answers rest on, for the user, for example a part of the data."""

    def step(self, batch_size: int) -> None:
        """Run one full training step (forward, backward, optimizer) on the worst examples."""

    def evaluate(self, batch_size: int) -> int:
        """Evaluate one batch without gradients, and return its number of examples.

        That is `batch_size`, or the framework's validation size for such a training batch.
        """

    def timed_step(self, batch_size: int, precision: Precision | None = None) -> StepSeconds:
        """Run one training step on ordinary examples, and time it; `precision` overrides its own.

        Synchronises the device before each time is taken. The value of the loss is arbitrary.
        """

    def modules(self) -> Sequence[nn.Module]:
        """Return the modules that stay on the device; the first is the trained model."""

    def close(self) -> None:
        """Stop loader workers and delete temporary files."""


class StepLoss(Protocol):
    """The report of an update for observers; `Elastic`'s `StepReport` is one."""

    @property
    def mean_loss(self) -> Tensor:
        """The mean loss over this process' batch, a scalar tensor on the device."""


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
        """The number of examples of one epoch; 0 before it is known."""

    @property
    def population(self) -> int | None:
        """The number of distinct examples; None if augmentation makes them different each time."""

    @property
    def micro_batch_size(self) -> int | None:
        """Examples per forward pass; None before the first step."""

    @property
    def facts(self) -> TrainingFacts:
        """Properties of the training that advice depends on; see `TrainingFacts`."""

    @property
    def learning_rate(self) -> float | None:
        """The configured learning rate, after scaling and without its schedule."""

    @property
    def is_evaluated(self) -> bool:
        """Whether the training has an evaluation."""

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the evaluation; the random states are restored."""

    def micro_batches(self, most: int | None = None) -> Iterator[Part]:
        """Yield micro-batches of at most `most` examples at the current weights, none twice."""

    def stop(self, reason: str) -> None:
        """End the training after this step."""

    def run(self) -> TrainingState:
        """Train to the end, or until `stop`, and return the state."""


class Observer:
    """Callbacks between a training's steps; subclass and override.

    `counts_as_training` says whether the time spent in them is part of the training's seconds.
    """

    counts_as_training = True

    def on_start(self, loop: Any) -> None:
        """Called before the first step, also after a resume."""

    def on_step(self, loop: Any, report: StepLoss) -> None:
        """Called after an update."""

    def measure_epoch(self, loop: Any) -> Mapping[str, float]:
        """Return metrics at the end of an epoch, which are added to `state.metrics`."""
        return {}

    def on_epoch(self, loop: Any) -> None:
        """Called after an epoch, when `state.metrics` is set."""

    def on_event(self, loop: Any, event: Event) -> None:
        """Called when memory ran out, or the micro-batch or batch size changed."""

    def on_end(self, loop: Any) -> None:
        """Called after the last step, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this observer for a checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""


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
    def place(self) -> str | None:
        """The place where `study` trains it, of the entry point group `rightbatch.places`.

        None: in workers of this machine, or where the options say.
        """
        return None

    @property
    def title(self) -> str | None:
        """Its name in a store of runs; None: the name of the workload that the user gave."""
        return None

    @property
    def loss_may_rise(self) -> bool:
        """Whether the loss of a normal training may rise far above its first value.

        That of a detector starts near zero and rises as it begins to find objects.
        """
        return False

    def metric_name(self, name: str) -> str:
        """Return the logged name of the metric that a user calls `name`."""
        return name

    def load(self) -> Training:
        """Import dependencies, in the process that runs the training, before any measurement."""
        return self

    def session(self, device: str, *, seed: int, inference: bool) -> Session:
        """Open a session on `device`.

        Needs `Ability.STEP`, or `Ability.EVALUATE` for `inference`.
        """
        raise _undeclared(self, Ability.EVALUATE if inference else Ability.STEP)

    def loop(
        self, plan: LoopPlan, processes: Processes, observers: Sequence[Observer]
    ) -> AbstractContextManager[TrainingLoop]:
        """Open a loop that trains by `plan`; needs `Ability.LOOP`."""
        raise _undeclared(self, Ability.LOOP)

    def refused_folder(self, out: Path, *, resume: bool) -> str | None:
        """Return why the loop may not write into `out`, or not continue what is there; or None."""
        return None

    def trial(self, argument: int, request: TrialRequest) -> Trial:
        """Run the training as a process of its own at one size; needs `Ability.TRIAL`.

        Raises:
            UsageError: if it cannot be measured, for example since it never makes a step.
        """
        raise _undeclared(self, Ability.TRIAL)

    @property
    def accumulates(self) -> bool:
        """Whether a command takes a batch in several micro-batches."""
        return False

    def command_line(self, values: Mapping[str, object]) -> str | None:
        """Return the command that trains with `values` for its placeholders; None if it is none."""
        return None

    def watch(self, request: WatchRequest) -> Watched:
        """Run the training as it stands, and observe it; needs `Ability.WATCH`."""
        raise _undeclared(self, Ability.WATCH)


def _undeclared(training: Training, ability: Ability) -> UsageError:
    return UsageError(
        f"{training.integration} offers no {ability.value} here: {WAY_ROUND[ability]}"
    )


def require(training: Training, ability: Ability, verb: str) -> None:
    """Check that a training has an ability that a verb needs.

    Raises:
        UsageError: if not; it names the verb, the integration, the ability and the alternative.
    """
    if ability not in training.abilities:
        raise UsageError(
            f"{verb} needs {ability.value}, which {training.integration} does not offer here: "
            f"{WAY_ROUND[ability]}"
        )
