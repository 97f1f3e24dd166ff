"""Noise windows: the noise scale at fixed weights, from many micro-batches without an update.

N examples give |G|² with a standard error of about √2 · tr(Σ)/N, far better than a loop that
updates after each batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rightbatch._noise.noise_scale import NoiseScale

MIN_PARTS = 4

Part = tuple[Callable[[], Tensor], float, float]
"""A micro-batch: a function that computes its mean loss, its examples, and the mean's count."""

Pair = tuple[float, float]
"""|G|² and tr(Σ)."""


@dataclass(frozen=True)
class NoiseWindow:
    """Observations at the current weights and at the average of the last steps' weights.

    At the current weights, the optimizer's oscillation along steep directions counts as gradient
    although it makes no progress, so the noise scale there is too low. At the average the
    oscillation cancels, and part of the progress with it, so the noise scale there is too high.
    The noise scale that matters for the batch size is between the two.
    """

    at_weights: tuple[Pair, ...] = ()
    at_average: tuple[Pair, ...] = ()

    def __add__(self, other: NoiseWindow) -> NoiseWindow:
        return NoiseWindow(self.at_weights + other.at_weights, self.at_average + other.at_average)

    def last(self, count: int) -> NoiseWindow:
        """Return the last `count` observations of each."""
        return NoiseWindow(self.at_weights[-count:], self.at_average[-count:])


class WeightAverage:
    """Exponential average of the weights over about 10 steps; as large as the weights."""

    SHARE = 0.1

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._values = [p.detach().clone() for p in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights; call it after every optimizer step."""
        self._steps += 1
        share = max(self.SHARE, 1 / self._steps)
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter.detach().to(value.dtype), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average as the model's weights inside the context."""
        own = [p.data for p in self._parameters]
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(self._parameters, own, strict=True):
                parameter.data = value


def measure_noise(
    model: nn.Module,
    average: WeightAverage,
    parts: Callable[[], Iterator[Part]],
    population: int | None,
    seconds: float,
) -> NoiseWindow:
    """Observe at the current weights and at their average, for half of the `seconds` each."""
    at_weights = observe_parts(model, parts(), population, seconds / 2)
    with average.applied():
        at_average = observe_parts(model, parts(), population, seconds / 2)
    return NoiseWindow(tuple(at_weights), tuple(at_average))


def observe_parts(
    model: nn.Module, parts: Iterator[Part], population: int | None, seconds: float
) -> list[Pair]:
    """Return |G|² and tr(Σ) from `parts`, stopping after `seconds` or half of the `population`.

    `population` is the number of examples that an epoch draws without replacement; None where
    random augmentation changes an example each time. Restores the buffers. Expects no gradients,
    and leaves none.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    noise = NoiseScale(model, population=population)
    started_at, count, drawn = time.perf_counter(), 0, 0.0
    try:
        for loss, examples, averaged in parts:
            (loss() * averaged).backward()
            noise.micro_batch(examples, weight=averaged)
            count, drawn = count + 1, drawn + examples
            is_late = time.perf_counter() - started_at > seconds
            is_half = population is not None and drawn > population / 2
            if count >= MIN_PARTS and (is_late or is_half):
                break
        noise.complete()
    finally:
        noise.close()
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)
    return noise.observations
