"""A short real training of a copy, and the noise scale late in it.

Early values say little: the noise scale dips, then grows several-fold while a model learns. So half
of the time is spent on training at a size that is known to train, and only then the weights are
held still in windows (`rightbatch._noise.window`), with some training in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer

from rightbatch._errors import UsageError
from rightbatch._noise import Part, WeightAverage, measure_noise
from rightbatch._training.targets import is_better
from rightbatch._workload.normalization import has_batch_norm

WINDOWS = 8
TRAINING_FIRST = 0.5
"""Share of the time before the first window."""
IN_WINDOWS = 0.7
"""Share of the rest that the windows take."""
SMOOTHING = 0.95
"""Of the training loss: the last 20 steps or so count."""


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


@dataclass
class PilotReport:
    """What happened. `losses` are (examples, smoothed training loss); `observations` are those of
    `NoiseScale`, `at_average` the same at the average of the last weights; `reached` says with how
    many steps, examples and seconds, where it was. `facts` are those of `facts`."""

    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)
    observations: list[tuple[float, float]] = field(default_factory=list)
    at_average: list[tuple[float, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reached: dict[str, float] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def facts(model: nn.Module, optimizer: Optimizer, **more: Any) -> dict[str, Any]:
    """What advice depends on and only the process that has the model can tell."""
    betas = optimizer.defaults.get("betas")
    return {
        "batch_norm": has_batch_norm(model),
        "betas": list(betas) if betas else None,
        "optimizer": type(optimizer).__name__,
        "gradient_bytes": sum(p.nbytes for p in model.parameters() if p.requires_grad),
        **more,
    }


class Trained(Protocol):
    """What a pilot needs of a training that goes on: its model, parts for a window, metrics."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def population(self) -> int | None:
        """The examples of an epoch, if they are the same each time they are drawn."""

    def parts(self) -> Iterator[Part]:
        """Micro-batches at the weights of now, without end, each example seldom twice."""

    def evaluate(self) -> Mapping[str, float]:
        """Metrics as after an epoch."""


class Pilot:
    """Told of every step; measures when it is time, and says when all is done."""

    def __init__(
        self, trained: Trained, plan: PilotPlan, show: Callable[[str], object] = lambda text: None
    ) -> None:
        self.report = PilotReport()
        self._trained, self._plan, self._show = trained, plan, show
        self._began = time.perf_counter()
        self._windows, self._looked = 0, self._began
        self._average = WeightAverage(trained.model)
        self._smooth, self._weight = 0.0, 0.0
        self._evaluated, self._evaluating, self._last_evaluation = self._began, 0.0, 0.0

    def after_step(self, loss: float, examples: int) -> bool:
        """An update by `examples` has ended; True once the pilot is over."""
        report = self.report
        report.steps, report.examples = report.steps + 1, report.examples + examples
        self._average.update()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss was {loss} after {report.steps} steps at batch size "
                f"{self._plan.batch_size}: the learning rate does not suit it. --base-batch says "
                "which size it was chosen for"
            )
        self._smooth = SMOOTHING * self._smooth + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        report.losses.append((report.examples, self._smooth / self._weight))
        self._show(f"pilot: loss {report.losses[-1][1]:.4g} after {report.steps} steps")
        if report.reached is None:
            report.seconds = time.perf_counter() - self._began - self._evaluating
            if self._has_reached():
                counts = {"steps": report.steps, "examples": report.examples}
                report.reached = {**counts, "seconds": report.seconds}
        if self._is_due:
            self._window()
        return self._windows == WINDOWS

    @property
    def _is_due(self) -> bool:
        """The windows lie on a way, since at one place the noise scale is not that of the next."""
        now = time.perf_counter()
        if self._windows:
            return now - self._looked >= (1 - IN_WINDOWS) / IN_WINDOWS * self._window_seconds
        first = TRAINING_FIRST * self._plan.seconds
        return self.report.reached is not None or now - self._began >= first

    @property
    def _window_seconds(self) -> float:
        return IN_WINDOWS * (1 - TRAINING_FIRST) * self._plan.seconds / WINDOWS

    def _window(self) -> None:
        self._windows += 1
        self._show(f"pilot: noise scale, window {self._windows} of {WINDOWS}")
        trained = self._trained
        trained.model.zero_grad()
        seen = measure_noise(
            trained.model,
            self._average,
            trained.parts,
            trained.population,
            self._window_seconds,
        )
        self.report.observations += seen.at_weights
        self.report.at_average += seen.at_average
        self._looked = time.perf_counter()

    def _has_reached(self) -> bool:
        target = self._plan.target
        if target is None:
            return False
        name, wanted = target
        if name == "loss":
            return self._weight > 0.5 and self.report.losses[-1][1] <= wanted
        now = time.perf_counter()
        if now - self._evaluated < 9 * self._last_evaluation:  # a tenth of the time at most
            return False
        metrics = dict(self._trained.evaluate())
        self._evaluated = time.perf_counter()
        self._last_evaluation = self._evaluated - now
        self._evaluating += self._last_evaluation
        if name not in metrics:
            raise UsageError(
                f"the workload measures no {name!r}; a target is loss, or one of "
                f"{', '.join(sorted(metrics)) or 'what evaluate returns (it has no evaluate)'}"
            )
        self.report.metrics = metrics
        return is_better(name, metrics[name], wanted)
