"""The figures of each batch size: median, minimum and maximum over its seeds."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rightbatch._study.analysis.cache import once_per_run
from rightbatch._study.analysis.grouping import (
    EVALUATION_LOSSES,
    LAST_PART,
    SizeRuns,
    common_axis,
    final_value,
    last_place,
    mean_between,
)
from rightbatch._study.analysis.steps_to_target import TRAINING_LOSS, find_crossing
from rightbatch._study.records import Crossing, Run, Status, Target

_TRAINING_LOSSES = (TRAINING_LOSS, "train_loss")
_NOISE_PART = 0.5
"""Later part of a run over which the noise is averaged, since it is lower early on."""


@dataclass(frozen=True)
class Spread:
    """Median, minimum and maximum of `count` seeds."""

    middle: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The spread of the known values; None if there are none."""
        known = [value for value in values if value is not None and math.isfinite(value)]
        return cls(statistics.median(known), min(known), max(known), len(known)) if known else None

    def overlaps(self, other: Spread) -> bool:
        """Whether the two bands overlap."""
        return self.low <= other.high and other.low <= self.high

    def to_dict(self) -> dict[str, float]:
        return {"middle": self.middle, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class SizeFigures:
    """Figures of the runs at the size's best learning rate; `statuses` counts all its runs.

    `count` of `of` runs reached the target; `of` are those that ended, and running ones that have
    reached it; both are 0 without a target. `steps`, `examples` and `seconds` to the target are of
    the runs that reached it. `gap` is the evaluation loss minus the training loss at the end of
    finished runs. `loss_spread` is the standard deviation of the steps' losses,
    `gradient_variance_of_batch` the variance of a batch's gradient, tr(Σ)/B; both over the later
    half of a run.
    """

    batch_size: int
    runs: int
    statuses: Mapping[Status, int]
    of: int
    count: int
    steps: Spread | None
    examples: Spread | None
    seconds: Spread | None
    examples_per_second: Spread | None
    peak_bytes: Spread | None
    limit_bytes: int | None
    learning_rate: Spread | None
    gap: Spread | None
    loss_spread: Spread | None
    gradient_variance_of_batch: Spread | None

    @property
    def is_reached(self) -> bool:
        """Whether at least half of the runs reached it: fewer would be the lucky ones."""
        return self.count > 0 and 2 * self.count >= self.of

    def to_target(self, axis: str) -> Spread | None:
        """The spread of `steps`, `examples` or `seconds`."""
        spread: Spread | None = getattr(self, axis)
        return spread

    def to_dict(self) -> dict[str, Any]:
        plain = {
            name: value.to_dict() if isinstance(value, Spread) else value
            for name, value in vars(self).items()
        }
        to_target = {axis: plain.pop(axis) for axis in ("steps", "examples", "seconds")}
        count = {"of": plain.pop("of"), "count": plain.pop("count")}
        return {
            **plain,
            "statuses": dict(self.statuses),
            "reached": count | to_target if self.of else None,
        }


def size_figures(size: SizeRuns, target: Target | None) -> SizeFigures:
    """The figures of a batch size's runs."""
    chosen = size.chosen
    when = {run.id: find_crossing(run, target) for run in chosen}
    hits = [each for each in when.values() if each is not None]
    decided = [run for run in chosen if run.status != "running" or when[run.id] is not None]
    of_runs = [_run_figures(run, target) for run in chosen]
    limits = [run.limit_bytes for run in chosen if run.limit_bytes is not None]
    return SizeFigures(
        batch_size=size.batch_size,
        runs=len(size.runs),
        statuses=dict(Counter(run.status for run in size.runs)),
        of=len(decided) if target is not None else 0,
        count=len(hits),
        steps=Spread.of(each.steps for each in hits),
        examples=Spread.of(each.examples for each in hits),
        seconds=Spread.of(each.seconds for each in hits),
        examples_per_second=Spread.of(run.examples_per_second for run in chosen),
        peak_bytes=Spread.of(run.peak_bytes for run in chosen),
        limit_bytes=min(limits, default=None),
        learning_rate=Spread.of(run.learning_rate for run in chosen),
        gap=Spread.of(one.gap for one in of_runs),
        loss_spread=Spread.of(one.loss_spread for one in of_runs),
        gradient_variance_of_batch=Spread.of(one.gradient_variance_of_batch for one in of_runs),
    )


def steps_to_target(size: SizeRuns, target: Target) -> list[float | None]:
    """Steps of every run that has ended or reached the target; None if it did not reach it."""
    when: list[tuple[Run, Crossing | None]] = [
        (run, find_crossing(run, target)) for run in size.chosen
    ]
    return [
        each.steps if each else None
        for run, each in when
        if each is not None or run.status != "running"
    ]


@dataclass(frozen=True)
class _RunFigures:
    gap: float | None
    loss_spread: float | None
    gradient_variance_of_batch: float | None


@once_per_run
def _run_figures(run: Run, target: Target | None) -> _RunFigures:
    variance = _over_last(run, "gradient_variance", _NOISE_PART)
    return _RunFigures(
        gap=_gap(run),
        loss_spread=_over_last(run, "loss_spread", _NOISE_PART, power=2),
        gradient_variance_of_batch=(
            variance / run.batch_size if variance is not None and run.batch_size else None
        ),
    )


def _gap(run: Run) -> float | None:
    metric = next((name for name in EVALUATION_LOSSES if name in run.curves), None)
    of_training = next((name for name in _TRAINING_LOSSES if name in run.curves), None)
    if metric is None or of_training is None or run.status != "finished":
        return None
    evaluated, trained = final_value(run, metric), _over_last(run, of_training, LAST_PART)
    return None if evaluated is None or trained is None else evaluated - trained


def _over_last(run: Run, metric: str, part: float, power: int = 1) -> float | None:
    axis = common_axis([run], metric)
    end = last_place(run, metric, axis) if axis else None
    if axis is None or end is None:
        return None
    return mean_between(run, metric, axis, (1 - part) * end, end, power)
