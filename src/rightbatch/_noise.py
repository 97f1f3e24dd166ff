"""The gradient's noise scale, from micro-batches of a loop that accumulates them.

McCandlish et al. 2018 (arXiv 1812.06162): B = tr(Σ) / |G|², with G the gradient of the whole
distribution and Σ the covariance of single examples' gradients around it. A batch much smaller than
B wastes parallelism, a much larger one wastes examples.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._batch import map_tensors
from rightbatch._errors import UsageError
from rightbatch._norm import has_batch_norm

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class NoiseEstimate:
    """`value` with its 95% interval, in `unit` (examples, unless `n` counted something else).

    Where the gradient cannot be told from noise, `value` is None and `high` infinite: all that is
    known is that the noise scale is above `low`. `gradient` is |G|², `noise` is tr(Σ), both the
    means of `steps` steps. `notes` say what the value depends on.
    """

    value: float | None
    low: float
    high: float
    unit: str
    gradient: float
    noise: float
    steps: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.value is None:
            return f"noise scale above {self.low:.3g} {self.unit} ({self.steps} steps)"
        return (
            f"noise scale {self.value:.3g} {self.unit} "
            f"({self.low:.3g} to {self.high:.3g}, {self.steps} steps)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON; an infinite bound is None."""
        return self.__dict__ | {"high": self.high if math.isfinite(self.high) else None}


class NoiseScale:
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
        if window < 2:
            raise UsageError(f"window is at least 2 steps, not {window}")
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise UsageError("the model has no parameter that is trained")
        self._population = population
        self._unit = unit
        self._seed = seed
        self._notes = tuple(_notes(model))
        self._steps: deque[tuple[float, float]] = deque(maxlen=window)
        self._square: Tensor | None = None  # of the micro-batch that is going on
        self._squares: list[Tensor] = []
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
        if self._square is None:
            raise UsageError("no gradient arrived: micro_batch follows a backward pass")
        self._squares.append(self._square)
        self._square = None
        self._parts.append((float(n), float(weight)))

    def step(self) -> None:
        """Say that the update's gradients are complete; they are read, not changed.

        Raises:
            UsageError: if there was only one micro-batch, in all processes together.
        """
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        whole = float(_square_of(gradients)) if gradients else 0.0
        single = float(torch.stack(self._squares).sum()) if self._squares else 0.0
        weights = sum(weight for _, weight in self._parts)
        squared = sum(weight**2 for _, weight in self._parts)
        spread = sum(weight**2 / n for n, weight in self._parts)
        self._forget()
        single, weights, squared, spread = _over_processes(single, weights, squared, spread)
        pairs = weights**2 - squared
        if pairs <= 1e-9 * squared:
            raise UsageError(
                "one micro-batch tells nothing of the noise: split the update's batch in two parts "
                "or more, and call micro_batch after the backward pass of each"
            )
        # With v the gradients as they were seen, w their weights and n their sizes:
        #   E|Σv|² = (Σw)² |G|² + tr(Σ) Σw²/n        E Σ|v|² = Σw² |G|² + tr(Σ) Σw²/n
        # and, drawn from N without repetition, tr(Σ)/(N−1) less of |G|² in the difference.
        gradient = (whole - single) / pairs
        noise = (single - squared * gradient) / spread
        if self._population is not None:
            noise *= 1 - 1 / self._population
            gradient += noise / (self._population - 1)
        if math.isfinite(gradient) and math.isfinite(noise):  # a scaler skips such a step, too
            self._steps.append((gradient, noise))

    @property
    def estimate(self) -> NoiseEstimate | None:
        """From the steps in the window; None with fewer than two."""
        if len(self._steps) < 2:
            return None
        gradient, noise = (
            sum(column) / len(self._steps) for column in zip(*self._steps, strict=True)
        )
        low, high = _interval(torch.tensor(list(self._steps), dtype=torch.float64), self._seed)
        value = noise / gradient if math.isfinite(high) and gradient > 0 else None
        high = high if value is not None else math.inf
        return NoiseEstimate(
            value, low, high, self._unit, gradient, noise, len(self._steps), self._notes
        )

    def close(self) -> None:
        """Watch no longer."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {"steps": list(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps.extend(tuple(pair) for pair in state["steps"])

    def _seen(self, gradient: Tensor) -> None:
        square = _square_of([gradient])
        self._square = square if self._square is None else self._square + square

    def _forget(self) -> None:
        self._square, self._squares, self._parts = None, [], []


def exact_noise_scale(
    model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any
) -> tuple[float, float]:
    """|G|² and tr(Σ), unbiased, from every example's own gradient; for small models.

    `batch` is a tensor, or a nesting of tensors, of B examples each (B ≥ 2). Takes B times the
    memory of a gradient.
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

    def of_one(parameters: dict[str, Tensor], example: Any) -> Tensor:
        one = map_tensors(example, lambda leaf: leaf.unsqueeze(0))
        return functional_call(whole, parameters, (one,))  # type: ignore[no-any-return]

    each = vmap(grad(of_one), in_dims=(None, 0), randomness="different")(trained, batch)
    flat = torch.cat([g.flatten(1).double() for g in each.values()], dim=1)
    n = len(flat)
    mean = flat.mean(dim=0)
    noise = float((flat.square().sum() / n - mean.square().sum()) * n / (n - 1))
    return float(mean.square().sum()) - noise / n, noise


def _square_of(gradients: list[Tensor]) -> Tensor:
    """The sum of squares, in fp32 at least."""
    total: Tensor | None = None
    for gradient in gradients:
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        wide = torch.float64 if values.dtype == torch.float64 else torch.float32
        square = torch.linalg.vector_norm(values.detach(), dtype=wide).double() ** 2
        total = square if total is None else total + square.to(total.device)
    assert total is not None
    return total


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


def _interval(steps: Tensor, seed: int) -> tuple[float, float]:
    """Percentiles of tr(Σ)/|G|² over resampled blocks of steps (T × 2), since neighbours are alike.

    A resample whose |G|² is not positive counts as infinite.
    """
    count = len(steps)
    length = max(1, round(count ** (1 / 3)))
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-count // length)
    starts = torch.randint(count, (RESAMPLES, blocks, 1), generator=generator)
    chosen = (starts + torch.arange(length)).flatten(1)[:, :count] % count
    gradient, noise = steps[chosen].mean(dim=1).unbind(dim=1)
    ratios = torch.where(gradient > 0, noise.clamp_min(0) / gradient.clamp_min(1e-300), math.inf)
    ordered = ratios.sort().values
    outside = (1 - LEVEL) / 2
    low, high = int(outside * RESAMPLES), math.ceil((1 - outside) * RESAMPLES) - 1
    return float(ordered[low]), float(ordered[high])


def _notes(model: nn.Module) -> list[str]:
    if has_batch_norm(model):
        return ["with BatchNorm the value depends on the micro-batch's size"]
    return []
