"""The noise scale at one set of weights: many micro-batches, and no update between them.

From N examples |G|² is known to about √2 · tr(Σ)/N, which no loop that updates after each batch
comes near.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from rightbatch._noise.scale import NoiseScale

LEAST_PARTS = 4

Part = tuple[Callable[[], Tensor], float, float]
"""A micro-batch: its mean loss, its examples, and what that mean is taken over."""


def window(
    model: nn.Module, parts: Iterator[Part], population: int, seconds: float
) -> list[tuple[float, float]]:
    """|G|² and tr(Σ) from `parts`, until `seconds` or half of the `population` are spent.

    Buffers are as before in the end; there are no gradients before and none are left.
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
            if count >= LEAST_PARTS and (is_late or seen > population / 2):
                break
        noise.complete()
    finally:
        noise.close()
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)
    return noise.observations
