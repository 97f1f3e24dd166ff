"""The gradient's noise scale.

McCandlish et al. 2018 (arXiv 1812.06162): B = tr(Σ) / |G|², with G the gradient of the whole
distribution and Σ the covariance of single examples' gradients around it. A batch much smaller than
B wastes parallelism, a much larger one wastes examples.
"""

from __future__ import annotations

from rightbatch._noise.exact import exact_noise_scale
from rightbatch._noise.observations import NoiseEstimate, Observations, estimated, resampled
from rightbatch._noise.of_norms import NormalizationNoise
from rightbatch._noise.scale import NoiseScale
from rightbatch._noise.window import Part, window

__all__ = [
    "NoiseEstimate",
    "NoiseScale",
    "NormalizationNoise",
    "Observations",
    "Part",
    "estimated",
    "exact_noise_scale",
    "resampled",
    "window",
]
