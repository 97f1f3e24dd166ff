"""The noise scale of a whole model, from the micro-batches of a loop that accumulates gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._errors import UsageError
from rightbatch._noise.estimate import GradientObserver, Observations
from rightbatch._workload.normalization import has_batch_norm

_PENDING_BYTES = 4 * 2**20
"""Bytes of gradients that are collected before their norms are computed in one call."""


class NoiseScale(GradientObserver):
    """Estimates the noise scale in a loop that runs several micro-batches per update.

    ::

        noise = NoiseScale(model)
        for part in parts:
            loss(model, part).backward()
            noise.micro_batch(n=len(part))
        noise.step()                 # before the gradients are clipped
        print(noise.estimate)

    Zero the gradients before the first micro-batch, as for any update. Under DDP, create one in
    every process and call `step` after the gradients are reduced; the micro-batches of all
    processes count.

    `window` is the number of steps the estimate averages over; the noise scale grows during
    training. `population` is the number of examples that an epoch draws without replacement;
    it corrects the bias where a batch is a large part of the data set. `unit` names what `n`
    counts.

    Raises:
        UsageError: if no parameter of the model requires a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        window: int = 100,
        population: float | None = None,
        unit: str = "examples",
        seed: int = 0,
    ) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise UsageError("no parameter of the model requires a gradient")
        self._population = population
        self._observations = Observations(window, unit, tuple(_notes(model)), seed)
        self._pending: list[Tensor] = []  # gradients of the current micro-batch
        self._pending_bytes = 0
        self._has_gradient = False
        self._norms: list[Tensor] = []  # of every parameter in every micro-batch of the step
        self._parts: list[tuple[float, float]] = []
        self._handles = [p.register_hook(self._on_gradient) for p in self._parameters]

    def micro_batch(self, n: float, weight: float = 1.0) -> None:
        """Record a backward pass over `n` examples; call it after each.

        `weight` is the factor on the micro-batch's mean loss: 1/k where the loop divides by the
        number of micro-batches, `scaler.get_scale()` with a `GradScaler`.

        Raises:
            UsageError: if no gradient was computed since the last call.
        """
        if not n > 0 or not weight > 0:
            raise UsageError(f"n and weight must be positive, got {n} and {weight}")
        if not self._has_gradient:
            raise UsageError("no gradient was computed: call micro_batch after a backward pass")
        self._has_gradient = False
        self._parts.append((float(n), float(weight)))

    def step(self) -> None:
        """Record the update; call it when its gradients are complete. Reads them only.

        Raises:
            UsageError: if there was only one micro-batch, over all processes.
        """
        if not self.complete():
            raise UsageError(
                "the noise scale cannot be estimated from one micro-batch: split the update's "
                "batch into two or more, and call micro_batch after the backward pass of each"
            )

    def complete(self, share: float = 1.0) -> bool:
        """Record the update like `step`, but return False if there was only one micro-batch.

        `share` is the factor on this process' gradients in the mean over the processes.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        whole = float(_sum_of_squares(_norms_of(gradients))) if gradients else 0.0
        self._compute_norms()
        single = float(_sum_of_squares(self._norms)) if self._norms else 0.0
        weights = share * sum(weight for _, weight in self._parts)
        squared = share**2 * sum(weight**2 for _, weight in self._parts)
        spread = share**2 * sum(weight**2 / n for n, weight in self._parts)
        self.forget()
        single, weights, squared, spread = _over_processes(
            share**2 * single, weights, squared, spread
        )
        return self._observations.add(
            whole=whole,
            single=single,
            weights=weights,
            squared=squared,
            spread=spread,
            population=self._population,
        )

    def forget(self) -> None:
        """Discard the micro-batches since the last step, before an attempt is repeated."""
        self._pending, self._pending_bytes, self._has_gradient = [], 0, False
        self._norms, self._parts = [], []

    @property
    def observations(self) -> list[tuple[float, float]]:
        """Unbiased estimates of |G|² and tr(Σ) from each step in the window."""
        return list(self._observations.pairs)

    def state_dict(self) -> dict[str, Any]:
        """Return the observations in the window, for `load_state_dict`."""
        return {"steps": self.observations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Add the observations of `state_dict`."""
        self._observations.pairs.extend(tuple(pair) for pair in state["steps"])

    def _on_gradient(self, gradient: Tensor) -> None:
        """Collect small gradients, so that one call computes the norms of many."""
        # Keep the tensor itself: autograd then copies it into the parameter's gradient, which DDP
        # changes in place. It would not copy if this kept a view.
        self._has_gradient = True
        self._pending.append(gradient)
        self._pending_bytes += gradient.element_size() * gradient.numel()
        if self._pending_bytes > _PENDING_BYTES:
            self._compute_norms()

    def _compute_norms(self) -> None:
        if self._pending:
            self._norms += _norms_of(self._pending)
            self._pending, self._pending_bytes = [], 0


def _norms_of(gradients: list[Tensor]) -> list[Tensor]:
    """Return each gradient's norm, in fp32 or fp64."""
    norms: list[Tensor] = []
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        by_kind.setdefault((values.device, values.dtype), []).append(values.detach())
    for (_, dtype), alike in by_kind.items():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        norms += torch._foreach_norm(alike, 2, dtype=wide)
    return norms


def _sum_of_squares(norms: list[Tensor]) -> Tensor:
    where = norms[0].device
    return torch.stack([norm.to(where) for norm in norms]).double().square().sum()


def _over_processes(*sums: float) -> tuple[float, ...]:
    """Return the sums over all processes; DDP's reduced gradient is the mean over them."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return sums
    count = distributed.get_world_size()
    if count == 1:
        return sums
    on_gpu = distributed.get_backend() == "nccl"
    total = torch.tensor(sums, dtype=torch.float64, device="cuda" if on_gpu else "cpu")
    distributed.all_reduce(total)
    single, weights, squared, spread = total.tolist()
    return single / count**2, weights / count, squared / count**2, spread / count**2


def _notes(model: nn.Module) -> list[str]:
    if has_batch_norm(model):
        return ["with BatchNorm the value depends on the micro-batch's size"]
    return []
