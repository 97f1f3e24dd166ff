"""Noise scale measurements of a training, between two steps with the weights held still."""

from __future__ import annotations

from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import release
from rightbatch._device.random_state import random_state, set_random_state
from rightbatch._noise import NoiseWindow, WeightAverage, measure_noise, observe_parts
from rightbatch._training.protocol import TrainingLoop
from rightbatch._workload.normalization import min_examples


def noise_windows(
    loop: TrainingLoop, seconds: float, average: WeightAverage | None = None
) -> NoiseWindow:
    """Measure |G|² and tr(Σ) for `seconds`: at the weights, and at their `average` if given.

    The weights and random states of the training are unchanged. Out of memory gives an empty
    window.
    """
    # Also for a small data set, a window has several parts and no example twice.
    most = max(min_examples(loop.model), loop.examples // 8, 1)
    before = random_state(loop.device)
    try:
        if average is not None:
            return measure_noise(
                loop.model, average, lambda: loop.micro_batches(most), loop.population, seconds
            )
        pairs = observe_parts(loop.model, loop.micro_batches(most), loop.population, seconds)
        return NoiseWindow(tuple(pairs))
    except BaseException as error:
        if not is_out_of_memory(error):
            raise
        release(loop.device)
        return NoiseWindow()
    finally:
        set_random_state(before, loop.device)
