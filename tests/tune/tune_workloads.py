"""Small trainings whose noise scale, step times or faults are known."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset

import rightbatch as rb

EXAMPLES, WIDTH = 2000, 8


def clusters(examples: int = EXAMPLES) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(examples, WIDTH, generator=generator)
    noise = 0.5 * torch.randn(examples, generator=generator)
    return TensorDataset(inputs, (inputs.sum(dim=1) + noise > 0).long())


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def workload(rate: float = 0.1) -> rb.Workload:
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 2))
    data = clusters()

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        inputs, labels = data.tensors
        return {"accuracy": float((model(inputs).argmax(1) == labels).float().mean())}

    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    return rb.Workload(model, classify, optimizer, data, evaluate=evaluate)


def still() -> rb.Workload:
    """Does not learn: every loss is log 2, since all classes are alike at these weights."""
    w = workload(rate=0.0)
    last = w.model[-1]  # type: ignore[index]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return w


def exploding() -> rb.Workload:
    model = nn.Linear(WIDTH, 1)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]).squeeze(1) - batch[1].float()).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e6)
    return rb.Workload(model, loss, optimizer, clusters())


def normalized() -> rb.Workload:
    """BatchNorm over vectors, trained by Adam, with few examples."""
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    return rb.Workload(model, classify, torch.optim.Adam(model.parameters()), clusters(50))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(WIDTH), torch.tensor(0)


def streamed() -> rb.Workload:
    model = nn.Linear(WIDTH, 2)
    return rb.Workload(model, classify, torch.optim.SGD(model.parameters(), lr=0.1), Endless())


class Line(nn.Module):
    """Linear regression at weights of length 1 from the best ones."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.zeros(WIDTH)
        weight[0] = 1.0
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


LINE_NOISE_SCALE = (WIDTH + 1) + WIDTH * 1.0
"""g = x (xᵀδ − ε): E g = δ and E|g|² = (d + 2)|δ|² + d σ², with |δ| = σ = 1."""


def line(examples: int = 20_000) -> rb.Workload:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, WIDTH, generator=generator)
    data = TensorDataset(x, torch.randn(examples, generator=generator))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return 0.5 * (model(batch[0]) - batch[1]).square().mean()

    model = Line()
    return rb.Workload(model, loss, torch.optim.SGD(model.parameters(), lr=0.0), data)


def exhausting() -> rb.Workload:
    """Its pilot has no room for more than 4 examples at once, though `fit` and the timing have."""
    w = workload()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        in_pilot = any(frame.function == "_pilot" for frame in inspect.stack(0))
        if in_pilot and len(batch[1]) > 4:
            raise torch.OutOfMemoryError("no room beside the average of the weights")
        return classify(model, batch)

    return replace(w, loss=loss)


def scheduled() -> rb.Workload:
    """Its schedule sets the rates of its optimizer by itself."""
    return replace(
        workload(),
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=steps
        ),
    )
