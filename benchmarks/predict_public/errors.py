"""The errors of predicted bytes, from brackets of batch sizes and from measured bytes.

A bracket [ran, failed) says that the largest batch of a GPU lies in it, so that its ratio to the
predicted one is known up to an interval. The distribution of ratios that makes all intervals most
likely is Turnbull's (J. R. Stat. Soc. B 38, 1976): mass on the innermost intervals, by
self-consistency. A step's bytes are nearly proportional to its batch, so that measured bytes are
predicted ones divided by that ratio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
"""Lower and upper end of measured bytes by predicted ones."""
COVERED = 0.9
"""Share of the errors within a band."""
_STEPS = 5000


@dataclass(frozen=True)
class Band:
    """`low` and `high` are measured bytes by predicted ones, of `rows` rows.

    `overlapping` is the share of the other half's `tested` rows whose interval overlaps the band;
    the share of errors within it is not larger.
    """

    low: float
    high: float
    rows: int
    tested: int
    overlapping: float


def interval(line: dict[str, Any]) -> Interval | None:
    """Return what a row says about the error; None if it says nothing.

    Kernels' limits end a step with memory left, so rows in which one does say nothing.
    """
    if "reserved" in line:
        ratio = line["peak_bytes"] / line["reserved"]
        return ratio, ratio
    largest = line.get("largest")
    if not largest or any("memory left" in note for note in line["notes"]):
        return None
    return largest / line["failed"], largest / line["ran"]


def band(lines: Iterable[dict[str, Any]]) -> Band | None:
    """Return the band of the half `fit`, and how many brackets of the half `test` overlap it."""
    halves: dict[str, list[Interval]] = {"fit": [], "test": []}
    for line in lines:
        found = interval(line)
        if found is not None:
            halves[line["half"]].append(found)
    if not halves["fit"] or not halves["test"]:
        return None
    low, high = quantiles(halves["fit"], [(1 - COVERED) / 2, (1 + COVERED) / 2])
    tested = halves["test"]
    overlapping = sum(a <= high and low <= b for a, b in tested) / len(tested)
    return Band(low, high, len(halves["fit"]), len(tested), overlapping)


def quantiles(intervals: Sequence[Interval], probabilities: Sequence[float]) -> list[float]:
    """Return quantiles of the most likely distribution; mass lies at the middle of its interval."""
    innermost, mass = turnbull(intervals)
    middles = innermost.mean(axis=1)
    reached = np.cumsum(mass)
    positions = np.searchsorted(reached, np.asarray(probabilities) * reached[-1])
    return [float(middles[min(at, len(middles) - 1)]) for at in positions]


def turnbull(intervals: Sequence[Interval]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the innermost intervals, and the mass of each in the most likely distribution.

    An innermost interval begins at a lower end and ends at the next upper end, with no other end
    between them; no distribution is more likely than one with all its mass there.
    """
    ends = sorted([(a, 0) for a, _ in intervals] + [(b, 1) for _, b in intervals])
    found = [
        (start, end)
        for (start, kind), (end, next_kind) in pairwise(ends)
        if kind == 0 and next_kind == 1
    ]
    innermost = np.array(sorted(set(found)))
    given = np.array(intervals)
    holds = (given[:, :1] <= innermost[:, 0]) & (innermost[:, 1] <= given[:, 1:])
    mass = np.full(len(innermost), 1 / len(innermost))
    for _ in range(_STEPS):
        share = holds * mass
        share /= share.sum(axis=1, keepdims=True)
        updated = share.mean(axis=0)
        if np.abs(updated - mass).max() < 1e-9:
            break
        mass = updated
    return innermost, mass
