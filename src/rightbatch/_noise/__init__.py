"""The gradient's noise scale.

McCandlish et al. 2018 (arXiv 1812.06162): B = tr(Σ) / |G|², with G the gradient of the whole
distribution and Σ the covariance of the gradients of single examples. A batch much smaller than B
wastes parallelism, a much larger one wastes examples.
"""

from __future__ import annotations

from rightbatch._noise.estimate import (
    NoiseEstimate,
    Observations,
    estimate_from,
    resample_ratios,
)
from rightbatch._noise.exact import exact_noise_scale
from rightbatch._noise.noise_scale import NoiseScale
from rightbatch._noise.normalization import NormalizationNoise
from rightbatch._noise.window import (
    NoiseWindow,
    Part,
    WeightAverage,
    measure_noise,
    observe_parts,
)

__all__ = [
    "NoiseEstimate",
    "NoiseScale",
    "NoiseWindow",
    "NormalizationNoise",
    "Observations",
    "Part",
    "WeightAverage",
    "estimate_from",
    "exact_noise_scale",
    "measure_noise",
    "observe_parts",
    "resample_ratios",
]
