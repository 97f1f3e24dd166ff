"""The noise scale from updates of a watched training that were sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rightbatch._noise import NoiseEstimate, Observations
from rightbatch._training.watched import SampledUpdate

OF_LAYERS = "of the linear, convolution and embedding layers"
_LATER = 0.5  # of a run: the noise scale grows during a training
_ENOUGH = 5  # samples; where that part has fewer, so many are used, the last ones


def noise_scale(updates: Sequence[SampledUpdate], seed: int = 0) -> NoiseEstimate | None:
    """Estimate the noise scale from the later sampled updates.

    None with fewer than two, or so few that not even a lower bound is known.
    """
    found = observations(later(updates), seed).estimate
    return found if found is not None and math.isfinite(found.low) else None


def observations(updates: Sequence[SampledUpdate], seed: int = 0) -> Observations:
    """Return |G|² and tr(Σ) of each update.

    The gradients count equally: a common factor, such as 1/accumulation, divides out.
    """
    notes = (OF_LAYERS,) if any(update.of_layers for update in updates) else ()
    found = Observations(max(len(updates), 2), "examples", notes, seed)
    for update in updates:
        found.add(
            whole=update.whole / update.scale**2,
            single=sum(square for square, _ in update.parts),
            weights=len(update.parts),
            squared=len(update.parts),
            spread=sum(1 / examples for _, examples in update.parts),
            population=None,
        )
    return found


def later(updates: Sequence[SampledUpdate]) -> Sequence[SampledUpdate]:
    """Return the updates of the later half of a run, or the last five if it has fewer."""
    last = max((update.update for update in updates), default=0)
    found = [update for update in updates if update.update >= _LATER * last]
    return found if len(found) >= _ENOUGH else updates[-_ENOUGH:]
