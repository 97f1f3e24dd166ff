"""Where more parallelism stops paying: the critical batch size, from steps to a target.

S steps and E examples reach a target at batch size B = E/S, with (S/S_min − 1)(E/E_min − 1) = 1,
so S = S_min + E_min/B; the critical batch size E_min/S_min takes twice the fewest steps and twice
the fewest examples (McCandlish et al. 2018, arXiv 1812.06162). It belongs to the target, and to
learning rates that suit each batch size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
LEAST_SIZES = 3
"""The curve has two parameters, so any two sizes lie on it."""
BEYOND = 1000.0
"""A critical batch size so many times above or below all sizes cannot be measured by steps."""
_PLACES, _REFINED = 300, 13
_REFINEMENTS, _OF_RESAMPLES = 6, 2

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class CriticalBatchSize:
    """`batch_size` with its 95% interval, fitted to `sizes`."""

    steps_min: float
    examples_min: float
    batch_size: float
    low: float
    high: float
    rms_log_error: float
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        value, low, high = (
            f"{each:.0f}" if each >= 10 else f"{each:.2g}"
            for each in (self.batch_size, self.low, self.high)
        )
        return f"about {value} ({low} to {high})"

    def steps(self, batch_size: float) -> float:
        """Steps to the target, as fitted."""
        return self.steps_min + self.examples_min / batch_size

    def to_dict(self, curve: Sequence[float] = ()) -> dict[str, Any]:
        """The fields as JSON, with batch size, steps and examples at each size of `curve`."""
        return {
            **vars(self),
            "sizes": len(self.sizes),
            "curve": [[b, self.steps(b), b * self.steps(b)] for b in curve],
        }


def fit_critical(
    steps: Mapping[int, Sequence[float | None]], seed: int = 0
) -> tuple[CriticalBatchSize | None, str]:
    """Fit the curve, and say what was left out; or None, and say why there is no fit.

    `steps` has the steps to the target of each run by batch size, None if it did not reach it. A
    size is left out if fewer than half of its runs reached the target: its steps would be those of
    the lucky ones. The logarithms of steps are fitted by least squares, each run counting once. The
    interval resamples the runs of each size. What the curve does not explain counts as noise of
    the sizes, so the interval is not narrower for runs that agree on steps which do not fit.
    """
    taken: dict[int, list[float]] = {}
    remarks = []
    for size, all_runs in sorted(steps.items()):
        reached = [each for each in all_runs if each is not None and 0 < each < math.inf]
        share = f"{size} ({len(reached)} of {len(all_runs)} runs reached the target"
        if reached and 2 * len(reached) >= len(all_runs):
            taken[size] = reached
            if len(reached) < len(all_runs):
                remarks.append(f"{share}: its steps are those of the faster ones)")
        elif all_runs:
            remarks.append(f"{share}: left out)")
    said = f"; {'; '.join(remarks)}" if remarks else ""
    if len(taken) < LEAST_SIZES:
        return None, (
            f"the critical batch size needs {LEAST_SIZES} batch sizes that reach the target; "
            f"{len(taken) or 'none'} did{said}"
        )
    fitted = _Fitted.to(taken)
    low, high = fitted.interval(seed)
    verdict = _verdict(fitted, low, high)
    if verdict:
        return None, verdict + said
    steps_min = fitted.steps_min
    critical = CriticalBatchSize(
        steps_min=steps_min,
        examples_min=steps_min * fitted.ratio,
        batch_size=fitted.ratio,
        low=low,
        high=high,
        rms_log_error=fitted.rms_log_error,
        sizes=tuple(taken),
    )
    reason = f"fitted to {len(taken)} batch sizes, rms log error {critical.rms_log_error:.1%}{said}"
    return critical, reason


def _verdict(fitted: _Fitted, low: float, high: float) -> str:
    """Why there is no number; empty if there is one."""
    least, most = min(fitted.steps), max(fitted.steps)
    if low == 0 and high == math.inf:
        return (
            "the critical batch size cannot be estimated: the steps to the target scatter too "
            "much, or do not fall with the batch size; more seeds may help"
        )
    if fitted.ratio > most or high == math.inf:
        return (
            f"the critical batch size is above {min(low, most):.3g}: up to {most}, the largest "
            "that reached the target, larger batches take fewer steps nearly in proportion; "
            "add larger batch sizes"
        )
    if fitted.ratio < least or low == 0:
        return (
            f"the critical batch size is below {max(high, least):.3g}: from {least}, the smallest "
            "that reached the target, larger batches hardly take fewer steps; add smaller batch "
            "sizes"
        )
    return ""


@dataclass(frozen=True)
class _Fitted:
    """`ratio` is E_min/S_min; 0 or infinite if that fits best."""

    steps: Mapping[int, Sequence[float]]
    logs: _Array
    weights: _Array
    ratio: float

    @classmethod
    def to(cls, steps: Mapping[int, Sequence[float]]) -> _Fitted:
        # Each size's mean and count say all that least squares needs of its runs.
        logs = np.array([np.log(each).mean() for each in steps.values()])
        weights = np.array([len(each) for each in steps.values()], dtype=np.float64)
        ratio = _best_ratios(_sizes(steps), logs[None], weights)[0]
        return cls(steps, logs, weights, float(ratio))

    @property
    def steps_min(self) -> float:
        return math.exp(float(np.average(self._unscaled(self.logs), weights=self.weights)))

    @property
    def residuals(self) -> _Array:
        left = self._unscaled(self.logs)
        return left - np.average(left, weights=self.weights)

    @property
    def rms_log_error(self) -> float:
        """The root mean square of the log error of the sizes' median runs."""
        medians = np.log([np.median(each) for each in self.steps.values()])
        errors = self._unscaled(medians) - math.log(self.steps_min)
        return float(np.sqrt(np.mean(errors**2)))

    def _unscaled(self, logs: _Array) -> _Array:
        """Log S_min at each size, if the curve's shape were exact."""
        sizes = _sizes(self.steps)
        return logs - (np.log1p(self.ratio / sizes) if self.ratio < math.inf else -np.log(sizes))

    def interval(self, seed: int) -> tuple[float, float]:
        """The interval of the ratio; 0 or infinite if too many of the resamples are."""
        random = np.random.default_rng(seed)
        drawn, variances = np.tile(self.logs, (RESAMPLES, 1)), np.zeros(len(self.logs))
        # The mean of n resampled from n has (n − 1)/n of the variance of the mean of n new ones.
        deviations = [
            (np.log(each) - np.log(each).mean()) * math.sqrt(len(each) / (len(each) - 1))
            for each in self.steps.values()
            if len(each) > 1
        ]
        pool = np.concatenate(deviations) if deviations else np.zeros(1)
        of_size = iter(deviations)
        for column, runs in enumerate(self.steps.values()):
            noise = next(of_size) if len(runs) > 1 else pool
            drawn[:, column] += random.choice(noise, (RESAMPLES, len(runs))).mean(axis=1)
            variances[column] = (noise**2).mean() / len(runs)
        freedom = len(self.logs) - 2
        unexplained = (self.weights * (self.residuals**2)).sum() / self.weights.mean() / freedom
        more = math.sqrt(max(0.0, unexplained - variances.mean()))
        # Its size is itself estimated, from few sizes: Student's t, one scale for each resample.
        scale = more * np.sqrt(freedom / random.chisquare(freedom, (RESAMPLES, 1)))
        drawn += scale * random.standard_normal(drawn.shape)
        ratios = np.sort(_best_ratios(_sizes(self.steps), drawn, self.weights, _OF_RESAMPLES))
        outside = (1 - LEVEL) / 2
        low, high = int(outside * RESAMPLES), math.ceil((1 - outside) * RESAMPLES) - 1
        # The grid is coarser here than for the ratio itself.
        return min(float(ratios[low]), self.ratio), max(float(ratios[high]), self.ratio)


def _sizes(steps: Mapping[int, Sequence[float]]) -> _Array:
    return np.array(list(steps), dtype=np.float64)


def _best_ratios(
    sizes: _Array, logs: _Array, weights: _Array, refinements: int = _REFINEMENTS
) -> _Array:
    """E_min/S_min of each row of log steps; 0 or infinite where the limit fits best.

    With S = S_min (1 + r/B), the best log S_min for a ratio r is a mean, so one dimension is left:
    a grid, and finer ones about its best place.
    """
    share = weights / weights.sum()
    low, high = math.log(sizes.min() / BEYOND), math.log(sizes.max() * BEYOND)
    centred = logs - (logs @ share)[:, None]

    def misfits(places: _Array) -> _Array:
        """The remaining variance at `places`, by row, without the part that all places share."""
        shapes = np.log1p(np.exp(places)[..., None] / sizes)
        shapes -= (shapes @ share)[..., None]
        if len(shapes) == 1:  # alike for all rows: one product of matrices, which is far faster
            crossed = (centred * share) @ shapes[0].T
        else:
            crossed = np.einsum("rps,rs->rp", shapes, centred * share)
        misfit: _Array = (shapes**2) @ share - 2 * crossed
        return misfit

    places = np.linspace(low, high, _PLACES)
    best = misfits(places[None]).argmin(axis=1)
    at, width = places[best], (high - low) / (_PLACES - 1)
    offsets = np.linspace(-1.0, 1.0, _REFINED)
    rows = np.arange(len(at))
    for _ in range(refinements):
        finer = at[:, None] + width * offsets
        at = finer[rows, misfits(finer).argmin(axis=1)]
        width *= offsets[1] - offsets[0]
    ratios: _Array = np.exp(at)
    ratios[best == 0] = 0.0
    ratios[best == _PLACES - 1] = math.inf
    return ratios
