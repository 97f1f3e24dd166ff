"""The JSON documents of a study, for the page and for reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rightbatch._json import finite
from rightbatch._study.analysis.bands import PLACES, band, thin
from rightbatch._study.analysis.colors import palette
from rightbatch._study.analysis.grouping import group_runs, metrics_of
from rightbatch._study.analysis.steps_to_target import find_crossing
from rightbatch._study.analysis.summary import summarize
from rightbatch._study.records import AXES, SCHEMA, Axis, Run, Target

ALL_PLACES = 12_000
"""Places of all bands of a metric along an axis: with very many sizes, each has fewer."""
LEAST_PLACES = 50
RUN_PLACES = 1000
_DIGITS = 6
"""Significant digits on a curve: more than a screen shows."""


class StudyRuns(Protocol):
    """The runs of a study, or others that are compared."""

    @property
    def title(self) -> str: ...

    @property
    def target(self) -> Target | None: ...

    def runs(self) -> list[Run]: ...


def study(source: StudyRuns) -> dict[str, Any]:
    """Everything but the curves: runs, the answer's sentences, figures by batch size."""
    runs, target = tuple(source.runs()), source.target
    summary = summarize(runs, target)
    colors = palette(size.batch_size for size in summary.sizes)
    plain = summary.to_dict()
    for size in plain["sizes"]:
        size["color"] = colors[size["batch_size"]]
    document = {
        "schema": SCHEMA,
        "title": source.title,
        "live": any(run.status == "running" for run in runs),
        "target": {"metric": target.metric, "value": target.value} if target else None,
        "axes": list(AXES),
        "metrics": metrics_of(runs, target),
        "runs": [_row(run, target) for run in runs],
        **plain,
    }
    return finite(document)  # type: ignore[no-any-return]


def curves(runs: Iterable[Run], metric: str, target: Target | None = None) -> dict[str, Any]:
    """A metric by batch size as bands of its seeds; a run without a batch size has its own.

    The target chooses the learning rates, so that the runs are those of the study's figures.
    """
    grouped = group_runs(runs, target)
    groups: list[tuple[int | None, str, tuple[Run, ...]]] = [
        *((size.batch_size, "", size.chosen) for size in grouped.sizes),
        *((None, run.name, (run,)) for run in grouped.unsized),
    ]
    groups = [group for group in groups if any(metric in run.curves for run in group[2])]
    places = min(PLACES, max(LEAST_PLACES, ALL_PLACES // max(1, len(groups))))
    sizes = []
    for batch_size, name, of_group in groups:
        along = {axis: _band(of_group, metric, axis, places) for axis in AXES}
        entry = {"batch_size": batch_size, "runs": len(of_group), "by": along}
        sizes.append(entry if batch_size is not None else entry | {"name": name})
    return {"schema": SCHEMA, "metric": metric, "sizes": sizes}


def run(one: Run) -> dict[str, Any]:
    """One run with its curves."""
    few = {metric: thin(curve, RUN_PLACES) for metric, curve in one.curves.items()}
    document = finite(one.to_dict())
    document["curves"] = {
        metric: {
            **{axis: _numbers(curve.along(axis)) for axis in AXES},
            "values": _numbers(curve.values),
        }
        for metric, curve in few.items()
    }
    return document  # type: ignore[no-any-return]


def _row(run: Run, target: Target | None) -> dict[str, Any]:
    when = find_crossing(run, target)
    return {**run.to_dict(), "reached": vars(when) if when else None}


def _band(runs: tuple[Run, ...], metric: str, axis: Axis, places: int) -> dict[str, Any]:
    """A band; empty if the axis was not recorded."""
    found = band(runs, metric, axis, places)
    if found is None:
        return {"x": [], "middle": [], "low": [], "high": []}
    return {name: _numbers(array) for name, array in vars(found).items()}


def _numbers(array: NDArray[np.float64]) -> list[float | None]:
    """Rounded, since all digits take three times the space; None for NaN and infinity."""
    is_finite = np.isfinite(array)
    known = np.where(is_finite & (array != 0), array, 1.0)
    # Powers of ten from 0 on are exact, so that a quotient by one is the nearest float: short.
    shift = _DIGITS - 1 - np.floor(np.log10(np.abs(known))).astype(int)
    up, down = 10.0 ** np.clip(shift, 0, 300), 10.0 ** np.clip(-shift, 0, 300)
    rounded = np.where(array == 0, 0.0, np.round(known * up / down) / up * down)
    numbers: list[float | None] = rounded.tolist()
    if is_finite.all():
        return numbers
    return [value if known else None for value, known in zip(numbers, is_finite, strict=True)]
