"""What is known of a noise scale: steps' unbiased parts, their ratio, and its interval."""

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
LEVEL = 0.95


@dataclass(frozen=True)
class NoiseEstimate:
    """`value` with its 95% interval, in `unit` (examples, unless `n` counted something else).

    Where the gradient cannot be told from noise, `value` is None and `high` infinite: all that is
    known is that the noise scale is above `low`. `gradient` is |G|², `noise` is tr(Σ), both the
    means of `steps` steps. `notes` say what the value depends on.
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
        """The fields as JSON; an infinite bound is None."""
        return self.__dict__ | {"high": self.high if math.isfinite(self.high) else None}


class Observations:
    """|G|² and tr(Σ) of the last `window` steps, each unbiased and noisy, and their ratio."""

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
        """One step's: False where it had one micro-batch only, which tells nothing.

        With v the gradients as they were seen, w their weights and n their sizes, `whole` is |Σv|²,
        `single` Σ|v|², `weights` Σw, `squared` Σw² and `spread` Σw²/n:
            E|Σv|² = (Σw)² |G|² + tr(Σ) Σw²/n        E Σ|v|² = Σw² |G|² + tr(Σ) Σw²/n
        and, drawn from N without repetition, tr(Σ)/(N−1) less of |G|² in the difference.
        """
        pairs = weights**2 - squared
        if pairs <= 1e-9 * squared:
            return False
        gradient = (whole - single) / pairs
        noise = (single - squared * gradient) / spread
        if population is not None and population > 1:
            noise *= 1 - 1 / population
            gradient += noise / (population - 1)
        if math.isfinite(gradient) and math.isfinite(noise):  # a scaler skips such a step, too
            self.pairs.append((gradient, noise))
        return True

    @property
    def estimate(self) -> NoiseEstimate | None:
        """The ratio of means; None with fewer than two steps."""
        count = len(self.pairs)
        if count < 2:
            return None
        gradient, noise = (sum(column) / count for column in zip(*self.pairs, strict=True))
        ratios = resampled(list(self.pairs), self._seed)
        outside = (1 - LEVEL) / 2
        low = float(ratios[int(outside * RESAMPLES)])
        high = float(ratios[math.ceil((1 - outside) * RESAMPLES) - 1])
        value = noise / gradient if math.isfinite(high) and gradient > 0 else None
        high = high if value is not None else math.inf
        return NoiseEstimate(value, low, high, self._unit, gradient, noise, count, self._notes)


class Watcher:
    """What watches a model's gradients by hooks, and estimates from what it observed."""

    _observations: Observations
    _handles: list[RemovableHandle]

    @property
    def estimate(self) -> NoiseEstimate | None:
        """From the steps in the window that were watched; None with fewer than two."""
        return self._observations.estimate

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()


def estimated(
    observations: Iterable[Sequence[float]],
    *,
    unit: str = "examples",
    notes: tuple[str, ...] = (),
    seed: int = 0,
) -> NoiseEstimate | None:
    """From pairs of |G|² and tr(Σ) that were kept; None with fewer than two."""
    pairs = [(gradient, noise) for gradient, noise in observations]
    kept = Observations(max(len(pairs), 2), unit, notes, seed)
    kept.pairs.extend(pairs)
    return kept.estimate


def resampled(observations: list[tuple[float, float]], seed: int = 0) -> Tensor:
    """tr(Σ)/|G|² of RESAMPLES resampled sets of blocks, since neighbours are alike; in order.

    A resample whose |G|² is not positive counts as infinite.
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
