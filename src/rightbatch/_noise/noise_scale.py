"""The noise scale of a whole model, from micro-batches of a loop that accumulates them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._errors import UsageError
from rightbatch._noise.estimate import Observations, Watcher
from rightbatch._workload.normalization import has_batch_norm

_HELD_BYTES = 4 * 2**20
"""Of gradients that wait for their norms to be taken together."""


class NoiseScale(Watcher):
    """Watches the gradients of a loop that runs several micro-batches per update.

    ::

        noise = NoiseScale(model)
        for part in parts:
            loss(model, part).backward()
            noise.micro_batch(n=len(part))
        noise.step()                 # before the gradients are clipped
        print(noise.estimate)

    Gradients are zeroed before the first micro-batch, as for any update. Under DDP every process
    has one, and calls `step` after gradients were reduced; each process' micro-batches count.

    `window` is how many steps the estimate looks back, since the noise scale grows in training.
    `population` is the number of examples that an epoch draws without repetition: where a batch is
    a sizeable part of it, less of its noise is seen. `unit` names what `n` counts.
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
            raise UsageError("the model has no parameter that is trained")
        self._population = population
        self._observations = Observations(window, unit, tuple(_notes(model)), seed)
        self._waiting: list[Tensor] = []  # gradients of the micro-batch that is going on
        self._waiting_bytes = 0
        self._is_new = False
        self._norms: list[Tensor] = []  # of every parameter in every micro-batch of the step
        self._parts: list[tuple[float, float]] = []
        self._handles = [p.register_hook(self._seen) for p in self._parameters]

    def micro_batch(self, n: float, weight: float = 1.0) -> None:
        """Say that a backward pass over `n` examples has ended.

        `weight` is the factor that its mean loss was multiplied with: 1/k where the loop divides by
        the number of parts, and `scaler.get_scale()` with a `GradScaler`.

        Raises:
            UsageError: if no gradient arrived since the last call.
        """
        if not n > 0 or not weight > 0:
            raise UsageError(f"n and weight are above 0, not {n} and {weight}")
        if not self._is_new:
            raise UsageError("no gradient arrived: micro_batch follows a backward pass")
        self._is_new = False
        self._parts.append((float(n), float(weight)))

    def step(self) -> None:
        """Say that the update's gradients are complete; they are read, not changed.

        Raises:
            UsageError: if there was only one micro-batch, in all processes together.
        """
        if not self.complete():
            raise UsageError(
                "one micro-batch tells nothing of the noise: split the update's batch in two parts "
                "or more, and call micro_batch after the backward pass of each"
            )

    def complete(self, share: float = 1.0) -> bool:
        """`step` for loops whose batches need not have two parts: False where there was only one.

        `share` is the factor on this process' gradients in the mean over the processes.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        whole = float(_sum_of_squares(_norms_of(gradients))) if gradients else 0.0
        self._take_norms()
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
        """Drop what was seen since the last step, of an attempt that is repeated."""
        self._waiting, self._waiting_bytes, self._is_new = [], 0, False
        self._norms, self._parts = [], []

    @property
    def observations(self) -> list[tuple[float, float]]:
        """|G|² and tr(Σ) of each step in the window, unbiased and noisy."""
        return list(self._observations.pairs)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {"steps": self.observations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._observations.pairs.extend(tuple(pair) for pair in state["steps"])

    def _seen(self, gradient: Tensor) -> None:
        """Small gradients wait, so that one call takes the norms of many; large ones do not."""
        # The tensor itself is kept: autograd then makes a copy of it the parameter's gradient,
        # which DDP changes in place. With a view of it, autograd would not know.
        self._is_new = True
        self._waiting.append(gradient)
        self._waiting_bytes += gradient.element_size() * gradient.numel()
        if self._waiting_bytes > _HELD_BYTES:
            self._take_norms()

    def _take_norms(self) -> None:
        if self._waiting:
            self._norms += _norms_of(self._waiting)
            self._waiting, self._waiting_bytes = [], 0


def _norms_of(gradients: list[Tensor]) -> list[Tensor]:
    """Each gradient's norm, in fp32 at least."""
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
    """Sums over the processes of DDP, whose reduced gradient is the mean of theirs."""
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
