"""A small training with dropout, BatchNorm, a schedule, an evaluation and augmentation."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

import rightbatch as rb

EXAMPLES = 45


class Numbered(Dataset[Any]):
    """Every item is drawn with some noise, and says that it was drawn in a file, if asked to."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(EXAMPLES, 6, generator=generator)
        self.labels = (self.inputs.sum(dim=1) > 0).long()

    def __len__(self) -> int:
        return EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if "RIGHTBATCH_TEST_SEEN" in os.environ:
            with Path(os.environ["RIGHTBATCH_TEST_SEEN"]).open("a") as file:
                file.write(f"{index}\n")
        return self.inputs[index] + 0.1 * random.random(), self.labels[index]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def workload() -> rb.Workload:
    model = nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2)
    )
    data = Numbered()

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        return {"accuracy": float((model(data.inputs).argmax(1) == data.labels).float().mean())}

    return rb.Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.02),
        data=data,
        evaluation_data=TensorDataset(data.inputs, data.labels),
        evaluate=evaluate,
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, steps
        ),
        clip_norm=1.0,
    )


def plain() -> rb.Workload:
    """Without what depends on the micro-batch or on the process."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    data = Numbered()
    return rb.Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        data=TensorDataset(data.inputs.double(), data.labels),
    )


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(6), torch.tensor(0)


def stream() -> rb.Workload:
    model = nn.Linear(6, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return rb.Workload(model=model, loss=loss, optimizer=optimizer, data=Endless())
