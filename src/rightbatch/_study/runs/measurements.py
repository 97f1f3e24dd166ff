"""The measurements of a run while it trains.

Their spacing is a compromise between their cost and the resolution of a target's steps.
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
from rightbatch._study.runs.spacing import next_point, period
from rightbatch._training.noise_windows import noise_windows
from rightbatch._training.protocol import Observer, StepLoss, TrainingLoop
from rightbatch._training.scaling import learning_rate_of
from rightbatch._training.targets import is_better

if TYPE_CHECKING:
    from rightbatch._training.loop import WorkloadLoop

EVALUATIONS = 1.05
"""Evaluations are 5% of the steps apart, and at points, which bounds the error of the steps to a
target."""
EVALUATION_SHARE, NOISE_SHARE = 0.2, 0.05
FREE = 2.0
"""Largest shares of a run's time for evaluations and for noise windows, plus these seconds; they do
not count as training."""
WINDOWS, LEAST_WINDOW = 1.1, 0.02
"""The noise scale is measured every 10% of the steps, for at least these seconds."""
FLUSH = 0.5  # seconds between two deliveries of points
EXPLODED = 10.0
"""A loss above this multiple of the first one counts as diverged, like one that is not finite."""


class DivergedError(Exception):
    """The training diverged; the message says how."""


class Measurements(Observer):
    """Measures a run after its steps; `send` is called with points twice a second.

    Losses stay on the device until then. The training ends after `seconds` or `steps`, or if an
    evaluation reaches the `target` (a target of the training loss is checked later, from all
    points). With `sharpness` the largest eigenvalue of the Hessian is also measured. With
    `loss_may_rise` a loss far above its first value does not count as diverged.
    """

    counts_as_training = False

    def __init__(
        self,
        target: Target | None,
        send: Callable[[list[Point]], object],
        *,
        seconds: float | None = None,
        steps: int | None = None,
        sharpness: bool = False,
        loss_may_rise: bool = False,
    ) -> None:
        self._target, self._send = target, send
        self._seconds, self._steps = seconds, steps
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
        """Keep the loop, whose weights show whether it has diverged."""
        self._loop = loop

    def on_step(self, loop: TrainingLoop, report: StepLoss) -> None:
        """Measure what is due.

        Raises:
            DivergedError: if the loss is not finite, or ten times the first one.
            UsageError: if the target is not a metric of the training.
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
        if time.perf_counter() - self._flushed >= FLUSH and self._waiting:
            self.flush(but_last=True)
        if self._steps is not None and at.steps >= self._steps:
            self.reason = f"{self._steps} steps"
        elif "end" in due:
            self.reason = f"trained for {at.seconds:.1f} s, the budget of {self._seconds:g} s"
        if self.reason:
            self.flush()
            loop.stop(self.reason)

    def measure_epoch(self, loop: TrainingLoop) -> Mapping[str, float]:
        """Return the current metrics; evaluates unless that was done after the last step."""
        if self._evaluated != loop.state.steps:
            found = self._evaluate(loop)
            self._point(loop, found)
            self.flush()
            if self.reason:
                loop.stop(self.reason)
        return self.metrics

    def flush(self, *, but_last: bool = False) -> None:
        """Send what has been measured, perhaps without the last point; waits for the device.

        An evaluation at the end of an epoch joins the point of the epoch's last step.
        """
        count = len(self._waiting) - but_last
        due, self._waiting = self._waiting[:count], self._waiting[count:]
        points = []
        for point, losses in due:
            values = dict(point.values)
            if losses:
                seen = torch.stack(losses).double().cpu()
                values["loss"] = float(seen.mean())
                if len(losses) > 1:
                    values["loss_spread"] = float(seen.std())
            points.append(Point(**vars(point) | {"values": values}))
        self._flushed = time.perf_counter()
        if points:
            self._send(points)
            self._check([p.values["loss"] for p in points if "loss" in p.values])

    def _check(self, losses: list[float]) -> None:
        if self._loss_may_rise:
            # If gradients overflow, a scaler skips the update: check the weights instead.
            bad = [loss for loss in losses if not math.isfinite(loss)]
            if bad and self._loop is not None and not _is_finite(self._loop.model):
                raise DivergedError(f"the loss became {bad[0]}, and weights are not finite")
            return
        for loss in losses:
            if self._first is None:
                self._first = loss
            if not math.isfinite(loss):
                raise DivergedError(f"the loss became {loss}")
            if loss > EXPLODED * abs(self._first) > 0:
                raise DivergedError(f"the loss rose from {self._first:.3g} to {loss:.3g}")

    def _is_due(self, loop: TrainingLoop) -> bool:
        """Whether a point is due; for several processes by steps only, which all agree on."""
        at = loop.state
        if self._steps is not None and at.steps >= self._steps:
            return True
        if loop.processes.world_size > 1:
            return at.steps >= self._point_at
        return at.steps >= self._point_at or at.seconds - self._pointed >= period(at.seconds)

    def _due(self, loop: TrainingLoop) -> list[str]:
        """Return what is due at a point, as this process sees it; always with `point`."""
        at = loop.state
        found = ["point"]
        if loop.is_evaluated:
            is_cheap = self._evaluating <= EVALUATION_SHARE * at.seconds + FREE
            is_last = self._steps is not None and at.steps >= self._steps
            if is_last or (at.steps >= self._evaluate_at and is_cheap):
                found.append("evaluation")
        is_cheap = self._window_seconds <= NOISE_SHARE * at.seconds + FREE
        if at.steps >= self._window_at and is_cheap:
            found += ["noise", "sharpness"] if self._sharpness else ["noise"]
        if self._seconds is not None and at.seconds >= self._seconds:
            found.append("end")
        return found

    def _point(self, loop: TrainingLoop, values: dict[str, float]) -> None:
        """Add a point at the current step, or add the values to the one of the same step."""
        at = loop.state
        losses, self._losses = self._losses, []
        if self._waiting and self._waiting[-1][0].steps == at.steps:
            before, known = self._waiting.pop()
            values, losses = {**before.values, **values}, known + losses
        rate = learning_rate_of(loop.optimizer)
        if rate is not None:
            values["learning_rate"] = rate
        epochs = at.examples / loop.examples
        point = Point(at.steps, at.examples, at.seconds, epochs, values, time.time())
        self._waiting.append((point, losses))
        self._point_at = next_point(at.steps)
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
            self.reason = f"{target.metric} reached {value:.4g} (target {target.value:g})"

    def _noise(self, loop: TrainingLoop) -> dict[str, float]:
        """Return |G|² and tr(Σ) at the current weights; empty if the measurement does not fit."""
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
        if squared > 0:  # else the gradient is lost in noise: the noise scale is unknown
            values["noise_scale"] = variance / squared
        return values

    def _curvature(self, loop: TrainingLoop) -> dict[str, float]:
        from rightbatch._study.runs.curvature import largest_eigenvalue

        began = time.perf_counter()
        value = largest_eigenvalue(cast("WorkloadLoop", loop))  # guaranteed by `Ability.CURVATURE`
        self._window_seconds += time.perf_counter() - began
        rate = learning_rate_of(loop.optimizer)
        found = {"sharpness": value}
        return found if rate is None else found | {"sharpness_times_rate": value * rate}


def _is_finite(model: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in model.parameters())


def _decided_by_first(loop: TrainingLoop, is_due: bool, due: list[str]) -> list[str]:
    """Return what is due in the first process, so that all processes do the same."""
    return list(loop.processes.from_first(due)) if is_due else []
