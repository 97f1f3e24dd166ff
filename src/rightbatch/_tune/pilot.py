"""A pilot: a short training of a copy, and the noise scale late in it.

Early values are not representative: the noise scale dips, then grows several-fold while a model
learns. So the first half of the time is spent on training, at the size that the learning rate was
chosen for. Then the weights are held still in windows (`rightbatch._noise.window`), with some
training in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from rightbatch._errors import UsageError
from rightbatch._noise import NoiseWindow, WeightAverage
from rightbatch._training.facts import TrainingFacts
from rightbatch._training.noise_windows import noise_windows
from rightbatch._training.protocol import LoopPlan, Observer, StepLoss, TrainingLoop
from rightbatch._training.targets import is_better
from rightbatch._workload.sizes import Sizes

WINDOWS = 8
TRAINING_FIRST = 0.5
"""Share of the time before the first window."""
IN_WINDOWS = 0.7
"""Share of the remaining time that the windows take."""
SMOOTHING = 0.95
"""Decay of the average of the training loss: about the last 20 steps count."""
EVALUATION_SHARE = 0.1
"""Largest share of the time for evaluations, if the target is a metric of the evaluation."""
UNBOUNDED = 10**6
"""Epochs of a training that an observer ends."""


@dataclass(frozen=True)
class PilotPlan:
    """A pilot of `seconds`, with `batch_size` examples per update in parts of `micro_batch_size`.

    `target` is a metric and the value to reach, which starts the windows. The workload's schedule
    is made for `epochs`. Parts have one of `sizes`.
    """

    batch_size: int
    micro_batch_size: int
    seconds: float
    sizes: Sizes = field(default_factory=Sizes)
    epochs: int = 10
    target: tuple[str, float] | None = None
    seed: int = 0

    def loop_plan(self) -> LoopPlan:
        """Return the plan of the pilot's training loop."""
        return LoopPlan(
            batch_size=self.batch_size,
            micro_batch_size=min(self.micro_batch_size, self.batch_size),
            sizes=self.sizes,
            epochs=UNBOUNDED,
            schedule_epochs=self.epochs,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Reached:
    """When the target was reached; `seconds` are of training, without measurements."""

    steps: int
    examples: int
    seconds: float


@dataclass(frozen=True)
class PilotReport:
    """What a pilot measured.

    `losses` are (examples, smoothed training loss). `noise` has |G|² and tr(Σ) of every window, at
    the weights and at their running average. `reached` is None if the target was not reached or
    there is none.
    """

    steps: int
    examples: int
    losses: tuple[tuple[int, float], ...]
    noise: NoiseWindow
    reached: Reached | None
    facts: TrainingFacts

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for a report of the worker."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> PilotReport:
        """Return the report that `to_dict` made, after it went through JSON."""
        noise, facts, reached = found["noise"], found["facts"], found["reached"]
        betas = facts["betas"]
        return cls(
            steps=found["steps"],
            examples=found["examples"],
            losses=tuple((examples, loss) for examples, loss in found["losses"]),
            noise=NoiseWindow(
                *(tuple((g, s) for g, s in noise[key]) for key in ("at_weights", "at_average"))
            ),
            reached=Reached(**reached) if reached else None,
            facts=TrainingFacts(
                **facts | {"betas": tuple(betas) if betas else None, "notes": tuple(facts["notes"])}
            ),
        )


@dataclass
class LossAverage:
    """The exponentially averaged training loss; `_weight` corrects the bias of the first steps."""

    SETTLED: ClassVar[int] = 14
    """Losses after which one of them counts for less than half: `SMOOTHING ** 14` is 0.49."""
    values: list[tuple[int, float]] = field(default_factory=list)
    _sum: float = 0.0
    _weight: float = 0.0

    def add(self, examples: int, loss: float) -> None:
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        self.values.append((examples, self._sum / self._weight))

    @property
    def is_settled(self) -> bool:
        """Whether no single loss decides."""
        return len(self.values) >= self.SETTLED


class Pilot(Observer):
    """Takes the windows when they are due, and ends the training after the last."""

    counts_as_training = False

    def __init__(self, plan: PilotPlan, show: Callable[[str], object] = lambda text: None) -> None:
        self._plan, self._show = plan, show
        self._began = self._looked = time.perf_counter()
        self._windows = 0
        self._average: WeightAverage | None = None
        self._losses = LossAverage()
        self._noise = NoiseWindow()
        self._reached: Reached | None = None
        self._evaluated, self._evaluation_seconds = self._began, 0.0

    def on_start(self, loop: TrainingLoop) -> None:
        """Start the clock and the average of the weights."""
        self._began = self._looked = self._evaluated = time.perf_counter()
        self._average = WeightAverage(loop.model)

    def on_step(self, loop: TrainingLoop, report: StepLoss) -> None:
        """Record the loss, check the target, and take a window if one is due.

        Raises:
            FloatingPointError: if the loss is not finite.
            UsageError: if the target is not a metric of the training.
        """
        assert self._average is not None
        self._average.update()
        at, loss = loop.state, float(report.mean_loss)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss was {loss} after {at.steps} steps at batch size "
                f"{self._plan.batch_size}: the learning rate is too high for this size. Give the "
                "size that it was chosen for with --base-batch"
            )
        self._losses.add(at.examples, loss)
        self._show(f"pilot: loss {self._losses.values[-1][1]:.4g} after {at.steps} steps")
        if self._reached is None and self._has_reached(loop):
            self._reached = Reached(at.steps, at.examples, at.seconds)
        if self._is_due:
            self._take_window(loop)
        if self._windows == WINDOWS:
            loop.stop("the pilot has measured its windows")

    def report(self, loop: TrainingLoop) -> PilotReport:
        """Return the measurements, after the loop has ended."""
        return PilotReport(
            steps=loop.state.steps,
            examples=loop.state.examples,
            losses=tuple(self._losses.values),
            noise=self._noise,
            reached=self._reached,
            facts=loop.facts,
        )

    @property
    def _is_due(self) -> bool:
        """Whether a window is due; they are spread, since the noise scale changes on the way."""
        now = time.perf_counter()
        if self._windows:
            return now - self._looked >= (1 - IN_WINDOWS) / IN_WINDOWS * self._window_seconds
        first = TRAINING_FIRST * self._plan.seconds
        return self._reached is not None or now - self._began >= first

    @property
    def _window_seconds(self) -> float:
        return IN_WINDOWS * (1 - TRAINING_FIRST) * self._plan.seconds / WINDOWS

    def _take_window(self, loop: TrainingLoop) -> None:
        self._windows += 1
        self._show(f"pilot: noise scale, window {self._windows} of {WINDOWS}")
        loop.model.zero_grad()
        self._noise += noise_windows(loop, self._window_seconds, self._average)
        self._looked = time.perf_counter()

    def _has_reached(self, loop: TrainingLoop) -> bool:
        target = self._plan.target
        if target is None:
            return False
        name, wanted = target
        if name == "loss":
            return self._losses.is_settled and self._losses.values[-1][1] <= wanted
        now = time.perf_counter()
        spacing = (1 - EVALUATION_SHARE) / EVALUATION_SHARE * self._evaluation_seconds
        if now - self._evaluated < spacing:
            return False
        metrics = loop.evaluate()
        self._evaluated = time.perf_counter()
        self._evaluation_seconds = self._evaluated - now
        if name not in metrics:
            raise UsageError(
                f"the workload does not measure {name!r}; a target is loss, or one of "
                f"{', '.join(sorted(metrics)) or 'the keys of evaluate (it has no evaluate)'}"
            )
        return is_better(name, metrics[name], wanted)
