"""A pilot: a short real training of a copy, and the noise scale late in it.

Early values say little: the noise scale dips, then grows several-fold while a model learns. So half
of the time is spent on training at a size that is known to train, and only then the weights are
held still in windows (`rightbatch._noise.window`), with some training in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rightbatch._errors import UsageError
from rightbatch._noise import NoiseWindow, WeightAverage
from rightbatch._training.facts import TrainingFacts
from rightbatch._training.noise_windows import noise_windows
from rightbatch._training.protocol import LoopPlan, Observer, StepLoss, TrainingLoop
from rightbatch._training.targets import is_better

WINDOWS = 8
TRAINING_FIRST = 0.5
"""Share of the time before the first window."""
IN_WINDOWS = 0.7
"""Share of the rest that the windows take."""
SMOOTHING = 0.95
"""Of the training loss: the last 20 steps or so count."""
EVALUATION_SHARE = 0.1
"""Of the time at most, where a target is a metric of the evaluation."""
UNBOUNDED = 10**6
"""Epochs of a training that is ended from outside."""


@dataclass(frozen=True)
class PilotPlan:
    """`batch_size` examples an update, of which `micro_batch_size` at once, for `seconds`.

    `target` is a metric with the value to reach; then it is time for the windows. A schedule is
    that of a training of `epochs`.
    """

    batch_size: int
    micro_batch_size: int
    seconds: float
    epochs: int = 10
    target: tuple[str, float] | None = None
    seed: int = 0

    def loop_plan(self) -> LoopPlan:
        """Return how the loop under the pilot trains."""
        return LoopPlan(
            batch_size=self.batch_size,
            micro_batch_size=min(self.micro_batch_size, self.batch_size),
            epochs=UNBOUNDED,
            schedule_epochs=self.epochs,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Reached:
    """When a target was reached; `seconds` are those of the training alone."""

    steps: int
    examples: int
    seconds: float


@dataclass(frozen=True)
class PilotReport:
    """What a pilot measured.

    `losses` are (examples, smoothed training loss). `noise` has |G|² and tr(Σ) of every window, at
    the weights and at the average of the last ones. `reached` is None where the target was not, or
    there was none.
    """

    steps: int
    examples: int
    losses: tuple[tuple[int, float], ...]
    noise: NoiseWindow
    reached: Reached | None
    facts: TrainingFacts

    def to_dict(self) -> dict[str, Any]:
        """Return it as a report of the worker's has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> PilotReport:
        """Return what `to_dict` made, after it went through JSON."""
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
class _Losses:
    """The training loss, smoothed; early on, the mean of what there is."""

    values: list[tuple[int, float]] = field(default_factory=list)
    _sum: float = 0.0
    weight: float = 0.0

    def add(self, examples: int, loss: float) -> None:
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)
        self.values.append((examples, self._sum / self.weight))


class Pilot(Observer):
    """Measures when it is time, and ends the training when all is measured."""

    counts_as_training = False

    def __init__(self, plan: PilotPlan, show: Callable[[str], object] = lambda text: None) -> None:
        self._plan, self._show = plan, show
        self._began = self._looked = time.perf_counter()
        self._windows = 0
        self._average: WeightAverage | None = None
        self._losses = _Losses()
        self._noise = NoiseWindow()
        self._reached: Reached | None = None
        self._evaluated, self._evaluation_seconds = self._began, 0.0

    def on_start(self, loop: TrainingLoop) -> None:
        """Begin to average the weights."""
        self._began = self._looked = self._evaluated = time.perf_counter()
        self._average = WeightAverage(loop.model)

    def on_step(self, loop: TrainingLoop, report: StepLoss) -> None:
        """Note the loss, look for the target, and take a window when it is time.

        Raises:
            FloatingPointError: if the loss is not finite.
            UsageError: if the target is no metric of the training.
        """
        assert self._average is not None
        self._average.update()
        at, loss = loop.state, float(report.mean_loss)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss was {loss} after {at.steps} steps at batch size "
                f"{self._plan.batch_size}: the learning rate does not suit it. --base-batch says "
                "which size it was chosen for"
            )
        self._losses.add(at.examples, loss)
        self._show(f"pilot: loss {self._losses.values[-1][1]:.4g} after {at.steps} steps")
        if self._reached is None and self._has_reached(loop):
            self._reached = Reached(at.steps, at.examples, at.seconds)
        if self._is_due:
            self._take_window(loop)
        if self._windows == WINDOWS:
            loop.stop("the pilot has its windows")

    def report(self, loop: TrainingLoop) -> PilotReport:
        """Return what was measured, when the loop has ended."""
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
        """The windows lie along the way, since one place's noise scale is not that of the next."""
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
            return self._losses.weight > 0.5 and self._losses.values[-1][1] <= wanted
        now = time.perf_counter()
        spacing = (1 - EVALUATION_SHARE) / EVALUATION_SHARE * self._evaluation_seconds
        if now - self._evaluated < spacing:
            return False
        metrics = loop.evaluate()
        self._evaluated = time.perf_counter()
        self._evaluation_seconds = self._evaluated - now
        if name not in metrics:
            raise UsageError(
                f"the workload measures no {name!r}; a target is loss, or one of "
                f"{', '.join(sorted(metrics)) or 'what evaluate returns (it has no evaluate)'}"
            )
        return is_better(name, metrics[name], wanted)
