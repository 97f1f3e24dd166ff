"""Small workloads whose steps are followed, and their peaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightbatch import Workload
from rightbatch._predict.follow import Follower
from rightbatch._predict.variant import Variant

WIDTH, LAYERS = 64, 8
LAYER = WIDTH * WIDTH * 4
WEIGHTS = LAYERS * LAYER
ROW = WIDTH * 4
"""Bytes of one activation of one example."""

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
# Copies of all weights that are held (weights, gradients, moments), and copies of one layer's that
# exist while it is updated: Adam's `sqrt`, its quotient, and the quotient of the layer before.
COPIES = {"sgd": (2, 0), "momentum": (3, 0), "adam": (4, 3), "adamw": (4, 3)}


class Rows(Dataset[Tensor]):
    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(self.shape)


def perceptron(
    optimizer: str = "sgd", width: int = WIDTH, layers: int = LAYERS, **fields: Any
) -> Callable[[], Workload]:
    def factory() -> Workload:
        blocks = [(nn.Linear(width, width, bias=False), nn.ReLU()) for _ in range(layers)]
        model = nn.Sequential(*(part for block in blocks for part in block))
        made = OPTIMIZERS[optimizer](model.parameters())
        known = {"loss": lambda model, batch: model(batch).sum(), "data": Rows(width)}
        return Workload(model=model, optimizer=made, **(known | fields))

    return factory


def peak(factory: Callable[[], Any], batch_size: int = 1, **variant: Any) -> int:
    """Return the peak bytes with fake tensors."""
    follower = Follower(factory)
    (trace,) = follower.traces([batch_size], Variant(**variant))
    assert follower.how == "fake"
    return trace.peak_bytes
