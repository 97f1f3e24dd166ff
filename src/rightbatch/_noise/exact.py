"""The exact noise scale of a small model; tests and benchmarks compare the estimates with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._workload.batch import map_tensors


def exact_noise_scale(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any
) -> tuple[float, float]:
    """Return unbiased |G|² and tr(Σ), computed from the gradient of every single example.

    `batch` is a tensor, or a nesting of tensors, of B examples each (B ≥ 2). Takes B times the
    memory of the gradient, so it is for small models.
    """
    from torch.func import functional_call, grad, vmap

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Any) -> Tensor:
            return loss(self.model, batch)

    whole = WithLoss()
    trained = {name: p.detach() for name, p in whole.named_parameters() if p.requires_grad}

    def example_loss(parameters: dict[str, Tensor], example: Any) -> Tensor:
        one = map_tensors(example, lambda leaf: leaf.unsqueeze(0))
        return functional_call(whole, parameters, (one,))  # type: ignore[no-any-return]

    each = vmap(grad(example_loss), in_dims=(None, 0), randomness="different")(trained, batch)
    flat = torch.cat([g.flatten(1).double() for g in each.values()], dim=1)
    n = len(flat)
    mean = flat.mean(dim=0)
    noise = float((flat.square().sum() / n - mean.square().sum()) * n / (n - 1))
    return float(mean.square().sum()) - noise / n, noise
