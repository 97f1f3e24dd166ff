"""The gradient's noise scale.

McCandlish et al. 2018 (arXiv 1812.06162): B = tr(Σ) / |G|², with G the gradient of the whole
distribution and Σ the covariance of single examples' gradients around it. A batch much smaller than
B wastes parallelism, a much larger one wastes examples.
"""

from __future__ import annotations

from rightbatch._noise.estimate import NoiseEstimate, Observations, estimated, resampled
from rightbatch._noise.exact import exact_noise_scale
from rightbatch._noise.noise_scale import NoiseScale
from rightbatch._noise.normalization import NormalizationNoise
from rightbatch._noise.window import Look, Part, WeightAverage, look, window

__all__ = [
    "Look",
    "NoiseEstimate",
    "NoiseScale",
    "NormalizationNoise",
    "Observations",
    "Part",
    "WeightAverage",
    "estimated",
    "exact_noise_scale",
    "look",
    "resampled",
    "window",
]
