"""Estimate the noise scale as a ratio of means over steps, with a bootstrap interval."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from rightbatch._errors import UsageError

RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise scale `value` with its 95% interval `low` to `high`, in `unit` (usually examples).

    Where the gradient cannot be distinguished from noise, `value` is None and `high` infinite:
    the data only show that the noise scale is above `low`. `gradient` is |G|² and `noise` is
    tr(Σ), both means over `steps` steps. `notes` list what the value depends on.
    """

    value: float | None
    low: float
    high: float
    unit: str
    gradient: float
    noise: float
    steps: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value is None:
            return f"noise scale above {self.low:.3g} {self.unit} ({self.steps} steps)"
        return (
            f"noise scale {self.value:.3g} {self.unit} "
            f"({self.low:.3g} to {self.high:.3g}, {self.steps} steps)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; an infinite bound is None."""
        return self.__dict__ | {"high": self.high if math.isfinite(self.high) else None}


class Observations:
    """Unbiased estimates of |G|² and tr(Σ) from each of the last `window` steps."""

    def __init__(self, window: int, unit: str, notes: tuple[str, ...], seed: int) -> None:
        if window < 2:
            raise UsageError(f"window is at least 2 steps, not {window}")
        self._unit, self._notes, self._seed = unit, notes, seed
        self.pairs: deque[tuple[float, float]] = deque(maxlen=window)

    def add(
        self,
        *,
        whole: float,
        single: float,
        weights: float,
        squared: float,
        spread: float,
        population: float | None,
    ) -> bool:
        """Add one step; return False if it had a single micro-batch, which gives no estimate.

        With v the weighted gradients of the micro-batches, w their weights and n their sizes,
        `whole` is |Σv|², `single` Σ|v|², `weights` Σw, `squared` Σw² and `spread` Σw²/n. Then
            E|Σv|² = (Σw)² |G|² + tr(Σ) Σw²/n        E Σ|v|² = Σw² |G|² + tr(Σ) Σw²/n
        Drawing from a `population` of N without replacement reduces the estimate of |G|² by
        tr(Σ)/(N−1), which is added back.
        """
        pairs = weights**2 - squared
        if pairs <= 1e-9 * squared:
            return False
        gradient = (whole - single) / pairs
        noise = (single - squared * gradient) / spread
        if population is not None and population > 1:
            noise *= 1 - 1 / population
            gradient += noise / (population - 1)
        if math.isfinite(gradient) and math.isfinite(noise):  # a GradScaler skips such a step too
            self.pairs.append((gradient, noise))
        return True

    @property
    def estimate(self) -> NoiseEstimate | None:
        """The noise scale as the ratio of means; None with fewer than two steps."""
        count = len(self.pairs)
        if count < 2:
            return None
        gradient, noise = (sum(column) / count for column in zip(*self.pairs, strict=True))
        ratios = resample_ratios(list(self.pairs), self._seed)
        tail = (1 - CONFIDENCE) / 2
        low = float(ratios[int(tail * RESAMPLES)])
        high = float(ratios[math.ceil((1 - tail) * RESAMPLES) - 1])
        value = noise / gradient if math.isfinite(high) and gradient > 0 else None
        high = high if value is not None else math.inf
        return NoiseEstimate(value, low, high, self._unit, gradient, noise, count, self._notes)


class GradientObserver:
    """Base class: observes a model's gradients with hooks and estimates the noise scale."""

    _observations: Observations
    _handles: list[RemovableHandle]

    @property
    def estimate(self) -> NoiseEstimate | None:
        """The estimate over the observed steps in the window; None with fewer than two."""
        return self._observations.estimate

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


def estimate_from(
    observations: Iterable[Sequence[float]],
    *,
    unit: str = "examples",
    notes: tuple[str, ...] = (),
    seed: int = 0,
) -> NoiseEstimate | None:
    """Estimate the noise scale from stored pairs of |G|² and tr(Σ); None with fewer than two."""
    pairs = [(gradient, noise) for gradient, noise in observations]
    kept = Observations(max(len(pairs), 2), unit, notes, seed)
    kept.pairs.extend(pairs)
    return kept.estimate


def resample_ratios(observations: list[tuple[float, float]], seed: int = 0) -> Tensor:
    """Return tr(Σ)/|G|² of bootstrap resamples, sorted, shape (RESAMPLES,).

    Blocks of consecutive steps are resampled, because neighbouring steps are correlated (moving
    block bootstrap). The ratio is infinite where the resampled |G|² is not positive.
    """
    steps = torch.tensor(observations, dtype=torch.float64)
    count = len(steps)
    length = max(1, round(count ** (1 / 3)))
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-count // length)
    starts = torch.randint(count, (RESAMPLES, blocks, 1), generator=generator)
    chosen = (starts + torch.arange(length)).flatten(1)[:, :count] % count
    gradient, noise = steps[chosen].mean(dim=1).unbind(dim=1)
    ratios = torch.where(gradient > 0, noise.clamp_min(0) / gradient.clamp_min(1e-300), math.inf)
    return ratios.sort().values
