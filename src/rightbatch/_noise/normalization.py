"""The noise scale of the normalization layers, for a loop without gradient accumulation.

One backward pass gives a single gradient, so there is nothing to compare, except where the
gradients of single examples are cheap to compute: at the weights and biases of LayerNorm, GroupNorm
and RMSNorm. Gray et al. 2024 (arXiv 2411.00999) find that their noise scale is proportional to the
whole model's during training; the factor depends on the model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rightbatch._errors import UsageError
from rightbatch._noise.estimate import GradientObserver, Observations

_NOTE = "of the normalization layers only: proportional to the whole model's, factor unknown"


class NormalizationNoise(GradientObserver):
    """Estimates the noise scale of normalization layers, with one backward pass per update.

    ::

        noise = NormalizationNoise(model)
        loss(model, batch).backward()
        noise.step()                 # before the gradients are clipped
        print(noise.estimate)

    The first dimension of a layer's input must be the examples, and the loss a mean over them.
    Only every `every`-th step is observed, which divides the cost. `window` and `population` are
    as in `NoiseScale`.

    Raises:
        UsageError: if the model has no LayerNorm, GroupNorm or RMSNorm with trained weights.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 4,
        window: int = 100,
        population: float | None = None,
        seed: int = 0,
    ) -> None:
        layers = [module for module in model.modules() if _is_supported(module)]
        if not layers:
            raise UsageError(
                "the model has no LayerNorm, GroupNorm or RMSNorm with weights; use NoiseScale, "
                "which works with any model in a loop of two or more micro-batches per update"
            )
        if every < 1:
            raise UsageError(f"every must be at least 1, got {every}")
        self._every, self._population = every, population
        self._observations = Observations(window, "examples", (_NOTE,), seed)
        self._steps = 0
        self._examples = 0
        self._rows: dict[nn.Module, list[Tensor]] = {}
        self._handles = [layer.register_forward_hook(self._on_forward) for layer in layers]

    def step(self) -> None:
        """Record the update; call it when its gradients are complete.

        Raises:
            UsageError: if an observed step had no gradient, or a single example.
        """
        was_observed, self._steps = self._is_observed, self._steps + 1
        rows, self._rows = self._rows, {}
        if not was_observed:
            return
        if not rows:
            raise UsageError(
                "no gradient was computed: call step after a forward and a backward pass"
            )
        single = torch.stack([_squares(parts).sum() for parts in rows.values()]).sum()
        whole = torch.stack([_total(parts).square().sum() for parts in rows.values()]).sum()
        count = max(sum(len(part) for part in parts) for parts in rows.values())
        if count < 2:
            raise UsageError(
                "the noise scale cannot be estimated from a batch of one example; use two or more"
            )
        # Every example is a micro-batch of one, with weight 1/count in the mean.
        self._observations.add(
            whole=float(whole),
            single=float(single),
            weights=1.0,
            squared=1 / count,
            spread=1 / count,
            population=self._population,
        )

    @property
    def _is_observed(self) -> bool:
        return self._steps % self._every == 0

    def _on_forward(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self._is_observed and output.requires_grad:
            x = inputs[0].detach()
            output.register_hook(lambda gradient: self._on_gradient(layer, x, gradient))

    def _on_gradient(self, layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
        self._rows.setdefault(layer, []).append(_per_example(layer, x, gradient.detach()))


def _per_example(layer: Any, x: Tensor, gradient: Tensor) -> Tensor:
    """Return each example's gradient of the layer's weight (and bias), one row per example.

    With x̂ the normalized input, the weight's gradient is the sum of x̂ · gradient over an example's
    positions, the bias' the sum of the gradient. GroupNorm's x̂ is (x − μ)/σ of its group, so the
    sums of x · gradient and of the gradient suffice, and x̂ is not computed.
    """
    count = len(x)
    if isinstance(layer, nn.GroupNorm):
        channels, groups = layer.num_channels, layer.num_groups
        places = x.reshape(count, channels, -1)
        by_place = gradient.reshape(places.shape)
        # The layer's own kernel for mean and 1/σ is many times as fast as `var_mean` on the CPU.
        size, eps = places.shape[2], layer.eps
        _, mean, inverse = torch.native_group_norm(
            places.contiguous(), None, None, count, channels, size, groups, eps
        )
        each = channels // groups
        product = torch.linalg.vecdot(places.to(by_place.dtype), by_place)
        sums = by_place.sum(dim=2)
        mean, inverse = (v.repeat_interleave(each, dim=1) for v in (mean, inverse))
        weight = (product - mean * sums) * inverse
    else:
        shape = tuple(layer.normalized_shape)
        if isinstance(layer, nn.LayerNorm):
            normal = functional.layer_norm(x, shape, None, None, layer.eps)
        else:
            normal = functional.rms_norm(x, shape, None, layer.eps)
        features = layer.weight.numel()
        by_place = gradient.reshape(count, -1, features)
        normal = normal.reshape(by_place.shape).to(by_place.dtype)
        weight = (normal * by_place).sum(dim=1)
        sums = by_place.sum(dim=1)
    bias = getattr(layer, "bias", None)
    return torch.cat([weight, sums], dim=1) if bias is not None else weight


def _is_supported(module: nn.Module) -> bool:
    kinds = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    weight = getattr(module, "weight", None)
    return isinstance(module, kinds) and weight is not None and weight.requires_grad


def _squares(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.float().square().sum(dim=1) for part in parts])


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.float().sum(dim=0) for part in parts]).sum(dim=0)
