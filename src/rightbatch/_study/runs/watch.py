"""What is measured of a run while it trains, and when: seldom enough to be cheap, often enough to
see when a target is reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import release
from rightbatch._elastic import StepReport
from rightbatch._training.evaluation import evaluated
from rightbatch._training.loop import Loop
from rightbatch._noise import window
from rightbatch._workload.normalization import least_examples
from rightbatch._device.random_state import random_state, set_random_state
from rightbatch._study.records import Point, Target
from rightbatch._training.targets import is_better

SPACING = 1.02
"""Points lie 2% of the steps apart: as dense for every batch size, and few however long it is."""
POINTS_BY_TIME = 2000
"""At least a point a second, so that a long step is seen; a longer time when there are so many."""
EVALUATIONS = 1.05
"""Evaluations lie 5% of the steps apart, and fall on points, which bounds the error of a count of
steps to a target."""
EVALUATION_SHARE, NOISE_SHARE = 0.2, 0.05
FREE = 2.0
"""Shares of a run's time, and seconds beside, that evaluations and looks at the noise may take; it
does not count as training."""
LOOKS, LEAST_WINDOW = 1.1, 0.02
"""The noise scale is looked at every 10% of the steps, for so many seconds at least."""
FLUSH = 0.5  # seconds between two deliveries of points
EXPLODED = 10.0
"""A loss of so many times the first one counts as diverged, as one that is no number does."""


class DivergedError(Exception):
    """The training diverged; the message says how."""


class Watch:
    """Hears of every update of a `Loop`; `tell` gets points some times a second.

    Losses stay on the device until then. With a `target` the training ends where an evaluation
    reaches it (the training loss is judged later, from all of its points), with `seconds` after so
    long. With `sharpness` the largest eigenvalue of the Hessian is measured now and then.
    """

    def __init__(
        self,
        target: Target | None,
        tell: Callable[[list[Point]], object],
        *,
        seconds: float | None = None,
        sharpness: bool = False,
    ) -> None:
        self._target, self._tell, self._seconds = target, tell, seconds
        self._sharpness = sharpness
        self._losses: list[Tensor] = []
        self._waiting: list[tuple[Point, list[Tensor]]] = []
        self._flushed = time.perf_counter()
        self._point_at, self._pointed = 1, 0.0
        self._evaluate_at, self._evaluated, self._evaluating = 1, -1, 0.0
        self._look_at, self._looking = 1, 0.0
        self._first: float | None = None
        self.metrics: dict[str, float] = {}
        self.reason = ""

    @property
    def is_over(self) -> bool:
        """Whether the training is to end here; `reason` says why."""
        return bool(self.reason)

    def after_step(self, loop: Loop, report: StepReport) -> None:
        """Measure what is due.

        Raises:
            DivergedError: if the loss is no number any more, or ten times the first one.
        """
        at = loop.standing
        self._losses.append(report.mean_loss.detach())
        is_time = _decided_by_first(loop, self._is_due(loop), self._is_time_for(loop))
        values: dict[str, float] = {}
        if "evaluation" in is_time:
            values |= self._evaluation(loop)
        if "noise" in is_time:
            values |= self._noise(loop)
        if "sharpness" in is_time:
            values |= self._curvature(loop)
        if is_time:
            self._point(loop, values)
        if time.perf_counter() - self._flushed >= FLUSH:
            self.flush()
        if "end" in is_time:
            self.reason = f"{at.seconds:.1f} s of training, as was asked for"
        if self.reason:
            self.flush()

    def after_epoch(self, loop: Loop) -> Mapping[str, float]:
        """The metrics of now, measured unless the last step was followed by it."""
        if self._evaluated != loop.standing.steps:
            found = self._evaluation(loop)
            self._point(loop, found)
            self.flush()
        return self.metrics

    def flush(self) -> None:
        """Deliver what has been measured; waits for the device."""
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
            self._tell(points)
            self._check([p.values["loss"] for p in points if "loss" in p.values])

    def _check(self, losses: list[float]) -> None:
        for loss in losses:
            if self._first is None:
                self._first = loss
            if not math.isfinite(loss):
                raise DivergedError(f"the loss became {loss}")
            if loss > EXPLODED * abs(self._first) > 0:
                raise DivergedError(f"the loss rose from {self._first:.3g} to {loss:.3g}")

    def _is_due(self, loop: Loop) -> bool:
        """The same in all processes, as far as it goes by steps."""
        at = loop.standing
        if loop.processes.world_size > 1:
            return at.steps >= self._point_at
        period = max(1.0, at.seconds / POINTS_BY_TIME)
        return at.steps >= self._point_at or at.seconds - self._pointed >= period

    def _is_time_for(self, loop: Loop) -> list[str]:
        """What this process would do at a point; `point` stands for one that is only that."""
        w, at = loop.workload, loop.standing
        found = ["point"]
        if w.evaluation_data is not None or w.evaluate is not None:
            is_cheap = self._evaluating <= EVALUATION_SHARE * at.seconds + FREE
            if at.steps >= self._evaluate_at and is_cheap:
                found.append("evaluation")
        if at.steps >= self._look_at and self._looking <= NOISE_SHARE * at.seconds + FREE:
            found += ["noise", "sharpness"] if self._sharpness else ["noise"]
        if self._seconds is not None and at.seconds >= self._seconds:
            found.append("end")
        return found

    def _point(self, loop: Loop, values: dict[str, float]) -> None:
        """A point at the step of now; what comes after it at the same step joins it."""
        at = loop.standing
        losses, self._losses = self._losses, []
        if self._waiting and self._waiting[-1][0].steps == at.steps:
            before, known = self._waiting.pop()
            values, losses = {**before.values, **values}, known + losses
        values["learning_rate"] = float(loop.workload.optimizer.param_groups[0]["lr"])
        epochs = at.examples / loop.examples
        point = Point(at.steps, at.examples, at.seconds, epochs, values, time.time())
        self._waiting.append((point, losses))
        self._point_at = max(at.steps + 1, math.ceil(at.steps * SPACING))
        self._pointed = at.seconds

    def _evaluation(self, loop: Loop) -> dict[str, float]:
        began = time.perf_counter()
        before = random_state(loop.device)
        try:
            found = evaluated(loop.workload, loop.step, loop.ran_out)
        finally:
            set_random_state(before, loop.device)
        self._evaluating += time.perf_counter() - began
        steps = loop.standing.steps
        self._evaluate_at = max(steps + 1, math.ceil(steps * EVALUATIONS))
        self._judge(found, loop)
        return dict(found)

    def _judge(self, found: Mapping[str, float], loop: Loop) -> None:
        self.metrics = dict(found)
        self._evaluated = loop.standing.steps
        target = self._target
        if target is None or target.metric not in found:
            return
        value = found[target.metric]
        if is_better(target.metric, value, target.value):
            self.reason = f"{target.metric} reached {value:.4g}, {target.value:g} was asked for"

    def _noise(self, loop: Loop) -> dict[str, float]:
        """|G|² and tr(Σ) at the weights of now; nothing where memory does not suffice for it."""
        began = time.perf_counter()
        before = random_state(loop.device)
        # A window holds several parts, and no example twice, where the data set is small, too.
        least = max(least_examples(loop.model), loop.examples // 8, 1)
        size = min(loop.step.micro_batch_size or 1, least)
        seconds = max(NOISE_SHARE * loop.standing.seconds - self._looking, LEAST_WINDOW)
        try:
            pairs: list[Any] = window(loop.model, loop.parts(size), loop.population, seconds)
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            release(loop.device)
            pairs = []
        finally:
            set_random_state(before, loop.device)
        self._looking += time.perf_counter() - began
        steps = loop.standing.steps
        self._look_at = max(steps + 1, math.ceil(steps * LOOKS))
        if not pairs:
            return {}
        squared = sum(pair[0] for pair in pairs) / len(pairs)
        variance = sum(pair[1] for pair in pairs) / len(pairs)
        values = {"gradient_squared": squared, "gradient_variance": variance}
        if squared > 0:  # else it is lost in noise, and the noise scale has no value
            values["noise_scale"] = variance / squared
        return values

    def _curvature(self, loop: Loop) -> dict[str, float]:
        from rightbatch._study.runs.curvature import largest_eigenvalue

        began = time.perf_counter()
        value = largest_eigenvalue(loop)
        self._looking += time.perf_counter() - began
        rate = float(loop.workload.optimizer.param_groups[0]["lr"])
        return {"sharpness": value, "sharpness_times_rate": value * rate}


def _decided_by_first(loop: Loop, is_due: bool, wishes: list[str]) -> list[str]:
    """What is done now: processes that train together do what the first one wishes."""
    return list(loop.processes.from_first(wishes)) if is_due else []
