"""Which batch size reaches the target soonest, as far as that can be told.

To a target a training at batch size B needs examples in proportion to 1 + B/φ (McCandlish 2018),
and so time in proportion to (1 + B/φ) / throughput(B). Both are known with an uncertainty, which is
carried through: the answer is a distribution over times for every size, all from the same draws.
For φ that is wide: it lies between two noise scales (`rightbatch._noise.NoiseWindow`).
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
critical batch size (McCandlish 2018, figure 4), so that is taken for a 95% interval."""
NEAR = 1.02
"""A smaller size is preferred where it may be as fast, and is not expected to be slower by more."""


@dataclass(frozen=True)
class Expected:
    """One size: `relative_time` to the target, the chosen size's being 1, with its 95% interval.

    `efficiency` is the share of its examples that is not wasted, 1/(1 + B/φ). A batch is run in
    `accumulation` micro-batches of at most `micro_batch_size` on each device. `seconds` to the
    target are known where the pilot reached it.
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
    """The sizes that were weighed, the chosen one, and those that cannot be told from the best.

    `price` is what the chosen one costs, in a unit that is the same for the same observations;
    `noise_scale` the median of those that sizes were weighed with. No size above `most` may be
    chosen; None for no bound.
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
    """Weigh `candidates` by expected time, or by that times the `price` of a second of such steps.

    None above `most` is chosen.
    `examples_to_target` are the batch size and the examples of a training that reached it.
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
    """Of each size to the target, where one training has shown the examples it takes."""
    if examples_to_target is None:
        return [None] * len(times)
    base, examples = examples_to_target
    needed = examples / (1 + base / noise)  # at a batch so small that none is wasted
    return [float((needed * row).median()) for row in times]


def _noise_draws(seen: NoiseWindow, seed: int) -> Tensor:
    """DRAWS of φ: anywhere between the noise scale at the weights and that at their average, on a
    logarithmic scale; within MODEL_ERROR of the first where the second is not known."""
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
    """DRAWS of resampled ratios. Where the gradient is lost in noise, all that is known is that the
    ratio is above a bound, and it is taken to be at it: noise must be no order to grow."""
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
