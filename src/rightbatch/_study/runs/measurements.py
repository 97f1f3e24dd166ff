"""What is measured of a run while it trains, and when.

Seldom enough to be cheap, often enough to see when a target is reached.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from rightbatch._errors import UsageError
from rightbatch._study.records import Point, Target
from rightbatch._training.noise_windows import noise_windows
from rightbatch._training.protocol import Observer, StepLoss, TrainingLoop
from rightbatch._training.targets import is_better

if TYPE_CHECKING:
    from rightbatch._training.loop import WorkloadLoop

SPACING = 1.02
"""Points lie 2% of the steps apart: as dense for every batch size, and few however long it is."""
POINTS_BY_TIME = 2000
"""At least a point a second, so that a long step is seen; a longer time when there are so many."""
EVALUATIONS = 1.05
"""Evaluations lie 5% of the steps apart, and fall on points, which bounds the error of a count of
steps to a target."""
EVALUATION_SHARE, NOISE_SHARE = 0.2, 0.05
FREE = 2.0
"""Shares of a run's time, and seconds beside, that evaluations and noise windows may take; it
does not count as training."""
WINDOWS, LEAST_WINDOW = 1.1, 0.02
"""The noise scale is measured every 10% of the steps, for so many seconds at least."""
FLUSH = 0.5  # seconds between two deliveries of points
EXPLODED = 10.0
"""A loss of so many times the first one counts as diverged, as one that is no number does."""


class DivergedError(Exception):
    """The training diverged; the message says how."""


class Measurements(Observer):
    """Measures a run at its steps; `send` gets points some times a second.

    Losses stay on the device until then. With a `target` the training ends where an evaluation
    reaches it (the training loss is judged later, from all of its points), with `seconds` after so
    long. With `sharpness` the largest eigenvalue of the Hessian is measured now and then. Where
    `loss_may_rise`, a loss that is far above its first value has not diverged.
    """

    counts_as_training = False

    def __init__(
        self,
        target: Target | None,
        send: Callable[[list[Point]], object],
        *,
        seconds: float | None = None,
        sharpness: bool = False,
        loss_may_rise: bool = False,
    ) -> None:
        self._target, self._send, self._seconds = target, send, seconds
        self._sharpness, self._loss_may_rise = sharpness, loss_may_rise
        self._losses: list[Tensor] = []
        self._waiting: list[tuple[Point, list[Tensor]]] = []
        self._flushed = time.perf_counter()
        self._point_at, self._pointed = 1, 0.0
        self._evaluate_at, self._evaluated, self._evaluating = 1, -1, 0.0
        self._window_at, self._window_seconds = 1, 0.0
        self._first: float | None = None
        self._loop: TrainingLoop | None = None
        self.metrics: dict[str, float] = {}
        self.reason = ""

    def on_start(self, loop: TrainingLoop) -> None:
        """Remember the loop, whose weights tell whether it has diverged."""
        self._loop = loop

    def on_step(self, loop: TrainingLoop, report: StepLoss) -> None:
        """Measure what is due.

        Raises:
            DivergedError: if the loss is not finite any more, or ten times the first one.
            UsageError: if the target is no metric of the training.
        """
        at = loop.state
        self._losses.append(report.mean_loss.detach())
        due = _decided_by_first(loop, self._is_due(loop), self._due(loop))
        values: dict[str, float] = {}
        if "evaluation" in due:
            values |= self._evaluate(loop)
        if "noise" in due:
            values |= self._noise(loop)
        if "sharpness" in due:
            values |= self._curvature(loop)
        if due:
            self._point(loop, values)
        if time.perf_counter() - self._flushed >= FLUSH:
            self.flush()
        if "end" in due:
            self.reason = f"{at.seconds:.1f} s of training, as was asked for"
        if self.reason:
            self.flush()
            loop.stop(self.reason)

    def measure_epoch(self, loop: TrainingLoop) -> Mapping[str, float]:
        """Return the metrics of now, measured unless the last step was followed by it."""
        if self._evaluated != loop.state.steps:
            found = self._evaluate(loop)
            self._point(loop, found)
            self.flush()
            if self.reason:
                loop.stop(self.reason)
        return self.metrics

    def flush(self) -> None:
        """Send what has been measured; waits for the device."""
        points = []
        for point, losses in self._waiting:
            values = dict(point.values)
            if losses:
                seen = torch.stack(losses).double().cpu()
                values["loss"] = float(seen.mean())
                if len(losses) > 1:
                    values["loss_spread"] = float(seen.std())
            points.append(Point(**vars(point) | {"values": values}))
        self._waiting.clear()
        self._flushed = time.perf_counter()
        if points:
            self._send(points)
            self._check([p.values["loss"] for p in points if "loss" in p.values])

    def _check(self, losses: list[float]) -> None:
        if self._loss_may_rise:
            # Where gradients overflow, a scaler leaves the update out: the weights decide.
            bad = [loss for loss in losses if not math.isfinite(loss)]
            if bad and self._loop is not None and not _is_finite(self._loop.model):
                raise DivergedError(f"the loss became {bad[0]}, and the weights with it")
            return
        for loss in losses:
            if self._first is None:
                self._first = loss
            if not math.isfinite(loss):
                raise DivergedError(f"the loss became {loss}")
            if loss > EXPLODED * abs(self._first) > 0:
                raise DivergedError(f"the loss rose from {self._first:.3g} to {loss:.3g}")

    def _is_due(self, loop: TrainingLoop) -> bool:
        """The same in all processes, as far as it goes by steps."""
        at = loop.state
        if loop.processes.world_size > 1:
            return at.steps >= self._point_at
        period = max(1.0, at.seconds / POINTS_BY_TIME)
        return at.steps >= self._point_at or at.seconds - self._pointed >= period

    def _due(self, loop: TrainingLoop) -> list[str]:
        """What this process would do at a point; `point` stands for one that is only that."""
        at = loop.state
        found = ["point"]
        if loop.is_evaluated:
            is_cheap = self._evaluating <= EVALUATION_SHARE * at.seconds + FREE
            if at.steps >= self._evaluate_at and is_cheap:
                found.append("evaluation")
        is_cheap = self._window_seconds <= NOISE_SHARE * at.seconds + FREE
        if at.steps >= self._window_at and is_cheap:
            found += ["noise", "sharpness"] if self._sharpness else ["noise"]
        if self._seconds is not None and at.seconds >= self._seconds:
            found.append("end")
        return found

    def _point(self, loop: TrainingLoop, values: dict[str, float]) -> None:
        """A point at the step of now; what comes after it at the same step joins it."""
        at = loop.state
        losses, self._losses = self._losses, []
        if self._waiting and self._waiting[-1][0].steps == at.steps:
            before, known = self._waiting.pop()
            values, losses = {**before.values, **values}, known + losses
        values["learning_rate"] = float(loop.optimizer.param_groups[0]["lr"])
        epochs = at.examples / loop.examples
        point = Point(at.steps, at.examples, at.seconds, epochs, values, time.time())
        self._waiting.append((point, losses))
        self._point_at = max(at.steps + 1, math.ceil(at.steps * SPACING))
        self._pointed = at.seconds

    def _evaluate(self, loop: TrainingLoop) -> dict[str, float]:
        began = time.perf_counter()
        found = loop.evaluate()
        self._evaluating += time.perf_counter() - began
        steps = loop.state.steps
        self._evaluate_at = max(steps + 1, math.ceil(steps * EVALUATIONS))
        self._judge(found, loop)
        return found

    def _judge(self, found: Mapping[str, float], loop: TrainingLoop) -> None:
        self.metrics = dict(found)
        self._evaluated = loop.state.steps
        target = self._target
        if target is None or target.metric == "loss":
            return
        if target.metric not in found:
            known = f"{', '.join(sorted(found))} and loss" if found else "loss only"
            raise UsageError(f"there is no metric {target.metric!r}; the training has {known}")
        value = found[target.metric]
        if is_better(target.metric, value, target.value):
            self.reason = f"{target.metric} reached {value:.4g}, {target.value:g} was asked for"

    def _noise(self, loop: TrainingLoop) -> dict[str, float]:
        """|G|² and tr(Σ) at the weights of now; nothing where memory does not suffice for it."""
        began = time.perf_counter()
        share = NOISE_SHARE * loop.state.seconds - self._window_seconds
        pairs = noise_windows(loop, max(share, LEAST_WINDOW)).at_weights
        self._window_seconds += time.perf_counter() - began
        steps = loop.state.steps
        self._window_at = max(steps + 1, math.ceil(steps * WINDOWS))
        if not pairs:
            return {}
        squared = sum(pair[0] for pair in pairs) / len(pairs)
        variance = sum(pair[1] for pair in pairs) / len(pairs)
        values = {"gradient_squared": squared, "gradient_variance": variance}
        if squared > 0:  # else it is lost in noise, and the noise scale has no value
            values["noise_scale"] = variance / squared
        return values

    def _curvature(self, loop: TrainingLoop) -> dict[str, float]:
        from rightbatch._study.runs.curvature import largest_eigenvalue

        began = time.perf_counter()
        value = largest_eigenvalue(cast("WorkloadLoop", loop))  # `Ability.CURVATURE` says so
        self._window_seconds += time.perf_counter() - began
        rate = float(loop.optimizer.param_groups[0]["lr"])
        return {"sharpness": value, "sharpness_times_rate": value * rate}


def _is_finite(model: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())


def _decided_by_first(loop: TrainingLoop, is_due: bool, due: list[str]) -> list[str]:
    """Processes that train together do what the first one would do."""
    return list(loop.processes.from_first(due)) if is_due else []
