"""Groups runs by batch size, and reads a metric of a run at a place or over a part of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch._study.analysis.steps_to_target import TRAINING_LOSS, find_crossing
from rightbatch._study.records import AXES, Axis, Run, Target
from rightbatch._training.targets import is_better

EVALUATION_LOSSES = ("evaluation_loss", "eval_loss", "val_loss")
"""The names in a study, in Transformers and in Lightning."""
LAST_PART = 0.1
"""Last part of a run, over whose examples the final training loss is averaged."""
_OF_TRAINING = (
    TRAINING_LOSS,
    "loss_spread",
    "noise_scale",
    "gradient_variance",
    "gradient_squared",
    "learning_rate",
    "examples_per_second",
    "peak_bytes",
)


@dataclass(frozen=True)
class SizeRuns:
    """All `runs` of a batch size, and those at its best learning rate: `chosen`.

    `factors` are the learning rate factors that were tried, `factor` is the best of them.
    """

    batch_size: int
    runs: tuple[Run, ...]
    chosen: tuple[Run, ...]
    factor: float
    factors: tuple[float, ...]


@dataclass(frozen=True)
class RunGroups:
    """`superseded` runs were stopped and restarted; `unsized` ones have no known batch size."""

    sizes: tuple[SizeRuns, ...]
    unsized: tuple[Run, ...]
    superseded: tuple[Run, ...]


def group_runs(runs: Iterable[Run], target: Target | None = None) -> RunGroups:
    """Group runs by batch size, the newest of each key, and choose each size's learning rate.

    Each size is compared at its best learning rate, or the comparison would be one of learning
    rates. That is the factor whose median run takes the fewest steps to the target, infinitely many
    if it does not reach it. Without a target, or if no run reaches it, it is the factor whose
    median run ends best. With few seeds, the best of many factors looks slightly too good.
    """
    runs = tuple(runs)
    kept, superseded = _newest(runs)
    by_size: dict[int, list[Run]] = {}
    for run in kept:
        if run.batch_size is not None:
            by_size.setdefault(run.batch_size, []).append(run)
    names = metrics_of(kept, target)
    sizes = []
    for size, of_size in sorted(by_size.items()):
        by_factor: dict[float, list[Run]] = {}
        for run in of_size:
            by_factor.setdefault(run.learning_rate_factor, []).append(run)
        factor = _best_factor(by_factor, target, names)
        chosen = tuple(by_factor[factor])
        sizes.append(SizeRuns(size, tuple(of_size), chosen, factor, tuple(sorted(by_factor))))
    unsized = tuple(run for run in kept if run.batch_size is None)
    return RunGroups(tuple(sizes), unsized, superseded)


def metrics_of(runs: Iterable[Run], target: Target | None = None) -> list[str]:
    """Names of all curves: the target's first, then evaluated metrics, then the training's."""
    first = target.metric if target else ""

    def order(name: str) -> tuple[object, ...]:
        if name in _OF_TRAINING:
            return name != first, 2, _OF_TRAINING.index(name), name
        is_trained = name.startswith(("train", "lr", "system"))
        return name != first, 3 if is_trained else 0 if name in EVALUATION_LOSSES else 1, 0, name

    return sorted({name for run in runs for name in run.curves}.difference(AXES), key=order)


def common_axis(runs: Sequence[Run], metric: str) -> Axis | None:
    """The first axis of examples, epochs and steps that all runs have for a metric."""
    curves = [run.curves[metric] for run in runs if metric in run.curves]
    axes: tuple[Axis, ...] = ("examples", "epochs", "steps")
    for axis in axes:
        if curves and all(np.isfinite(curve.along(axis)).all() for curve in curves):
            return axis
    return None


def last_place(run: Run, metric: str, axis: Axis) -> float | None:
    """The place of a metric's last value."""
    curve = run.curves.get(metric)
    if curve is None:
        return None
    places = curve.along(axis)[np.isfinite(curve.values)]
    return float(places[-1]) if len(places) and math.isfinite(places[-1]) else None


def mean_between(
    run: Run, metric: str, axis: Axis, begin: float, end: float, power: int = 1
) -> float | None:
    """The mean between two places, each value weighted by the distance from the one before.

    A power mean if `power` is not 1: 2 for a standard deviation.
    """
    curve = run.curves.get(metric)
    if curve is None or not len(curve.values):
        return None
    ends = curve.along(axis)
    begins = np.concatenate([[0.0], ends[:-1]])
    weights = np.clip(np.minimum(ends, end) - np.maximum(begins, begin), 0.0, None)
    is_counted = np.isfinite(curve.values) & (weights > 0)
    if not is_counted.any():
        return None
    mean = np.average(curve.values[is_counted] ** power, weights=weights[is_counted])
    return float(mean ** (1 / power))


def value_at(run: Run, metric: str, axis: Axis, place: float) -> float | None:
    """A metric at a place, interpolated; the training loss averaged over the part before it.

    None beyond the last value.
    """
    last = last_place(run, metric, axis)
    if last is None or place > last * (1 + 1e-9):
        return None
    if metric == TRAINING_LOSS:
        return mean_between(run, metric, axis, (1 - LAST_PART) * place, place)
    curve = run.curves[metric]
    is_measured = np.isfinite(curve.values)
    return float(np.interp(place, curve.along(axis)[is_measured], curve.values[is_measured]))


def final_value(run: Run, metric: str) -> float | None:
    """A metric at the end of a run; None for a run that diverged."""
    if run.status == "diverged":
        return None
    logged = run.metrics.get(metric, math.nan)
    if metric != TRAINING_LOSS and math.isfinite(logged):
        return logged
    axis = common_axis([run], metric)
    last = last_place(run, metric, axis) if axis else None
    return None if axis is None or last is None else value_at(run, metric, axis, last)


def _newest(runs: tuple[Run, ...]) -> tuple[list[Run], tuple[Run, ...]]:
    """Separate the stopped runs that a newer run with the same key replaces.

    All others of one key count: another logger's runs may differ in more than our key.
    """
    newest: dict[tuple[int | None, int | None, float], float] = {}
    for run in runs:
        key = (run.batch_size, run.seed, run.learning_rate_factor)
        newest[key] = max(newest.get(key, -math.inf), run.started)
    kept: list[Run] = []
    superseded: list[Run] = []
    for run in runs:
        key = (run.batch_size, run.seed, run.learning_rate_factor)
        is_old = run.status == "stopped" and None not in key and run.started < newest[key]
        (superseded if is_old else kept).append(run)
    return kept, tuple(superseded)


def _best_factor(
    by_factor: dict[float, list[Run]], target: Target | None, names: list[str]
) -> float:
    if len(by_factor) == 1:
        return next(iter(by_factor))

    def median(factor: float, figure: Callable[[Run], float | None], never: float) -> float:
        values = (figure(run) for run in by_factor[factor])
        return statistics.median(never if v is None or math.isnan(v) else v for v in values)

    if target is not None:
        needed = {factor: median(factor, _steps_to(target), math.inf) for factor in by_factor}
        if min(needed.values()) < math.inf:
            return min(sorted(needed), key=needed.__getitem__)
    metric = names[0] if names else TRAINING_LOSS
    sign = 1.0 if is_better(metric, 0.0, 1.0) else -1.0

    def end(run: Run) -> float | None:
        value = final_value(run, metric)
        return None if value is None else sign * value

    ends = {factor: median(factor, end, math.inf) for factor in by_factor}
    # Among equals, and before anything is known, the rule's own factor.
    return min(sorted(ends, key=lambda factor: abs(math.log(factor))), key=ends.__getitem__)


def _steps_to(target: Target) -> Callable[[Run], float | None]:
    def steps(run: Run) -> float | None:
        when = find_crossing(run, target)
        return when.steps if when else None

    return steps
