"""The noise scale at one set of weights: many micro-batches, and no update between them.

From N examples |G|² is known to about √2 · tr(Σ)/N, which no loop that updates after each batch
comes near.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rightbatch._noise.noise_scale import NoiseScale

LEAST_PARTS = 4

Part = tuple[Callable[[], Tensor], float, float]
"""A micro-batch: its mean loss, its examples, and what that mean is taken over."""

Pair = tuple[float, float]
"""|G|² and tr(Σ)."""


@dataclass(frozen=True)
class Look:
    """What windows showed at the weights of the moment, and at the average of the last ones.

    At the weights, what the optimizer swings to and fro between steep walls counts as gradient,
    though it takes the training nowhere: their noise scale is low. At the average the swings are
    gone, and some of the progress with them: it is high. What the batch size has to be held
    against lies between.
    """

    at_weights: tuple[Pair, ...] = ()
    at_average: tuple[Pair, ...] = ()

    def __add__(self, other: Look) -> Look:
        return Look(self.at_weights + other.at_weights, self.at_average + other.at_average)

    def last(self, count: int) -> Look:
        return Look(self.at_weights[-count:], self.at_average[-count:])


class WeightAverage:
    """The average of the weights of the last 10 steps or so; takes the memory of the weights."""

    SHARE = 0.1

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._values = [p.detach().clone() for p in self._parameters]
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """After every step of the optimizer."""
        self._steps += 1
        share = max(self.SHARE, 1 / self._steps)
        for value, parameter in zip(self._values, self._parameters, strict=True):
            value.lerp_(parameter.detach().to(value.dtype), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average for its weights."""
        own = [p.data for p in self._parameters]
        for parameter, value in zip(self._parameters, self._values, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(self._parameters, own, strict=True):
                parameter.data = value


def look(
    model: nn.Module,
    average: WeightAverage,
    parts: Callable[[], Iterator[Part]],
    population: int | None,
    seconds: float,
) -> Look:
    """A window at the weights and one at their average, of half of the `seconds` each."""
    here = window(model, parts(), population, seconds / 2)
    with average.in_place():
        there = window(model, parts(), population, seconds / 2)
    return Look(tuple(here), tuple(there))


def window(
    model: nn.Module, parts: Iterator[Part], population: int | None, seconds: float
) -> list[Pair]:
    """|G|² and tr(Σ) from `parts`, until `seconds` or half of the `population` are spent.

    The population is that of examples which an epoch draws without repetition and which are the
    same each time; None where augmentation makes them anew. Buffers are as before in the end; there
    are no gradients before and none are left.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    noise = NoiseScale(model, population=population)
    began, count, seen = time.perf_counter(), 0, 0.0
    try:
        for loss, examples, averaged in parts:
            (loss() * averaged).backward()
            noise.micro_batch(examples, weight=averaged)
            count, seen = count + 1, seen + examples
            is_late = time.perf_counter() - began > seconds
            is_half = population is not None and seen > population / 2
            if count >= LEAST_PARTS and (is_late or is_half):
                break
        noise.complete()
    finally:
        noise.close()
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)
    return noise.observations
