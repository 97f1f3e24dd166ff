"""Which batch size reaches the target soonest, with its uncertainty.

To reach a target, a training at batch size B needs examples in proportion to 1 + B/φ (McCandlish
2018), and so time in proportion to (1 + B/φ) / throughput(B). The uncertainty of both is carried
through: each size gets a distribution of times, all from the same draws. That of φ is wide: it lies
between two noise scales (`rightbatch._noise.NoiseWindow`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rightbatch._noise import NoiseWindow, estimate_from, resample_ratios
from rightbatch._tune.throughput import DRAWS, Steps, Throughput

MODEL_ERROR = math.log(2) / 2
"""Standard deviation of log φ: near the target the noise scale is within a factor of 2 of the
critical batch size (McCandlish 2018, figure 4), which is taken as the 95% interval."""
NEAR = 1.02
"""A smaller size is preferred if it may be as fast and is expected to take at most this factor."""


@dataclass(frozen=True)
class Expected:
    """What is expected of one batch size.

    `relative_time` to the target is 1 for the chosen size, with its 95% interval `low` to `high`.
    `efficiency` is the share of examples that is not wasted, 1/(1 + B/φ). A batch is run in
    `accumulation` micro-batches of at most `micro_batch_size` on each device. `seconds` is the time
    to the target; None if the pilot did not reach it.
    """

    batch_size: int
    micro_batch_size: int
    accumulation: int
    examples_per_second: float
    examples_per_second_low: float
    examples_per_second_high: float
    efficiency: float
    relative_time: float
    low: float
    high: float
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Decision:
    """The sizes that were compared, and the chosen one.

    `alike` are the sizes that cannot be distinguished from the best. `price` is the relative price
    of the chosen one, comparable between decisions from the same observations. `noise_scale` is the
    median of the draws. No size above `most` may be chosen; None for no bound.
    """

    expected: tuple[Expected, ...]
    batch_size: int
    alike: tuple[int, ...]
    price: float
    noise_scale: float
    most: int | None = None

    @property
    def chosen(self) -> Expected:
        return next(each for each in self.expected if each.batch_size == self.batch_size)


def decide(
    throughput: Throughput,
    seen: NoiseWindow,
    candidates: Sequence[int],
    *,
    most: int | None = None,
    price: Callable[[Steps], float] = lambda steps: 1.0,
    examples_to_target: tuple[int, int] | None = None,
    seed: int = 0,
) -> Decision:
    """Compare `candidates` by expected time, times the `price` of a second of such steps.

    No size above `most` is chosen. `examples_to_target` is the batch size and the number of
    examples of a training that reached the target.
    """
    noise = _noise_draws(seen, seed)
    steps = [throughput.steps(size) for size in sorted(set(candidates))]
    times = torch.stack([(1 + s.batch_size / noise) * s.seconds / s.batch_size for s in steps])
    prices = torch.tensor([[price(s)] for s in steps], dtype=torch.float64)
    seconds = _seconds(times, noise, examples_to_target)
    times = times * prices
    middle = times.median(dim=1).values
    allowed = [i for i, s in enumerate(steps) if most is None or s.batch_size <= most]
    fastest = min(allowed, key=lambda i: float(middle[i]))
    ratios = times / times[fastest]
    low = _quantile(ratios, 0.025)
    alike = [
        i
        for i in allowed
        if i == fastest or (float(low[i]) <= 1 and float(ratios[i].median()) <= NEAR)
    ]
    chosen = min(alike)
    ratios = times / times[chosen]
    lows, highs = _quantile(ratios, 0.025), _quantile(ratios, 0.975)
    phi = noise.median()
    expected = tuple(
        Expected(
            batch_size=s.batch_size,
            micro_batch_size=s.micro_batch_size,
            accumulation=s.accumulation,
            examples_per_second=float((s.batch_size / s.seconds).median()),
            examples_per_second_low=float(_quantile(s.batch_size / s.seconds, 0.025)),
            examples_per_second_high=float(_quantile(s.batch_size / s.seconds, 0.975)),
            efficiency=float(1 / (1 + s.batch_size / phi)),
            relative_time=float(ratios[i].median()),
            low=float(lows[i]),
            high=float(highs[i]),
            seconds=seconds[i],
        )
        for i, s in enumerate(steps)
    )
    sizes = [s.batch_size for s in steps]
    price_of_chosen = float(middle[chosen])
    alike_sizes = tuple(sizes[i] for i in alike)
    return Decision(expected, sizes[chosen], alike_sizes, price_of_chosen, float(phi), most)


def _seconds(
    times: Tensor, noise: Tensor, examples_to_target: tuple[int, int] | None
) -> list[float | None]:
    """Return the seconds of each size to the target, from one training that reached it."""
    if examples_to_target is None:
        return [None] * len(times)
    base, examples = examples_to_target
    needed = examples / (1 + base / noise)  # at a batch so small that none is wasted
    return [float((needed * row).median()) for row in times]


def _noise_draws(seen: NoiseWindow, seed: int) -> Tensor:
    """Draw φ, shape (DRAWS,).

    Its logarithm is uniform between those of the noise scales at the weights and at their average;
    if the latter is unknown, normal around the former with MODEL_ERROR.
    """
    generator = torch.Generator().manual_seed(seed)
    low = _drawn(seen.at_weights, generator, seed)
    if len(seen.at_average) < 2:
        error = torch.randn(DRAWS, generator=generator, dtype=torch.float64)
        return low * (MODEL_ERROR * error).exp()
    high = _drawn(seen.at_average, generator, seed)
    place = torch.rand(DRAWS, generator=generator, dtype=torch.float64)
    return low * (high / low) ** place


def _drawn(
    observations: Sequence[tuple[float, float]], generator: torch.Generator, seed: int
) -> Tensor:
    """Draw resampled noise scales, shape (DRAWS,).

    If the gradient is lost in noise, only a lower bound is known, which is used: noise alone must
    not lead to a larger batch.
    """
    ratios = resample_ratios(list(observations), seed)
    estimate = estimate_from(observations, seed=seed)
    assert estimate is not None
    bound = max(estimate.low if math.isfinite(estimate.low) else 1.0, 1.0)
    is_known = ratios.isfinite() & (ratios > 0)
    if estimate.value is None:
        is_known = torch.zeros_like(is_known)
    draws = torch.where(is_known, ratios, bound)
    return draws[torch.randint(len(draws), (DRAWS,), generator=generator)]


def _quantile(rows: Tensor, q: float) -> Tensor:
    return rows.quantile(q, dim=-1)
