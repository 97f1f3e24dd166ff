"""The band of one batch size: median, minimum and maximum over its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch._study.records import Axis, Curve, Run

PLACES = 300
"""At most in a band: more than a screen shows."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """Median, minimum and maximum of the seeds at each place `x` of an axis."""

    x: _Array
    middle: _Array
    low: _Array
    high: _Array


def band(runs: Sequence[Run], metric: str, axis: Axis, places: int = PLACES) -> Band | None:
    """The band of a metric along an axis, each run interpolated; None without measurements.

    The places are those of the runs' own measurements, thinned evenly if there are too many, so
    they are dense where the measurements are, on linear and logarithmic axes. A run has no value
    beyond its ends, and the band ends where fewer than half of the runs continue: what remains
    would jump as runs drop out.
    """
    measured = [_measured(run.curves[metric], axis) for run in runs if metric in run.curves]
    measured = [(x, values) for x, values in measured if len(x)]
    if not measured:
        return None
    grid = _grid([x for x, _ in measured], places)
    values = np.sort(
        [np.interp(grid, x, values, left=np.nan, right=np.nan) for x, values in measured], axis=0
    )
    counts = np.isfinite(values).sum(axis=0)  # sorted, so that NaN come last
    is_kept = 2 * counts >= len(measured)
    grid, values, counts = grid[is_kept], values[:, is_kept], counts[is_kept]

    def ranked(rank: NDArray[np.int64]) -> _Array:
        return values[rank, np.arange(len(grid))]

    middle = (ranked((counts - 1) // 2) + ranked(counts // 2)) / 2
    return Band(grid, middle, values[0], ranked(counts - 1))


def thin(curve: Curve, places: int) -> Curve:
    """A curve with at most so many places: its ends, and the extremes of each section."""
    count = len(curve.values)
    if count <= places:
        return curve
    width = -(-count // max(1, (places - 2) // 2))
    sections = -(-count // width)
    padded = np.full(sections * width, np.nan)
    padded[:count] = curve.values
    rows = padded.reshape(sections, width)
    least = np.where(np.isnan(rows), np.inf, rows).argmin(axis=1)
    most = np.where(np.isnan(rows), -np.inf, rows).argmax(axis=1)
    starts = np.arange(sections) * width
    kept = np.unique(np.concatenate([[0, count - 1], starts + least, starts + most]))
    axes = (curve.steps, curve.examples, curve.seconds, curve.epochs, curve.values)
    return Curve(*(array[kept] for array in axes))


def _measured(curve: Curve, axis: Axis) -> tuple[_Array, _Array]:
    x = curve.along(axis)
    is_measured = np.isfinite(x) & np.isfinite(curve.values)
    x, values = x[is_measured], curve.values[is_measured]
    if (x[1:] < x[:-1]).any():
        order = np.argsort(x, kind="stable")
        x, values = x[order], values[order]
    return x, values


def _grid(places_of_runs: list[_Array], places: int) -> _Array:
    """Every k-th of all measurements, with each run thinned first, since sorting is expensive.

    The places where half of the runs have begun and where half of them still continue are kept.
    """
    few = np.unique(np.concatenate([_every(x, places) for x in places_of_runs]))
    if len(few) <= places:
        return few
    half = (len(places_of_runs) + 1) // 2
    begin = np.sort([x[0] for x in places_of_runs])[half - 1]
    end = np.sort([x[-1] for x in places_of_runs])[-half]
    return np.union1d(_every(few, places - 2), [begin, end])


def _every(x: _Array, places: int) -> _Array:
    if len(x) <= places:
        return x
    kept: _Array = x[np.linspace(0, len(x) - 1, places).round().astype(int)]
    return kept
