"""Workloads for tests that run `fit` in earnest: quick steps, memory that is easy to predict."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import rightbatch as rb

WIDTH = 2**17  # floats in an example: half a MiB
MIB = 2**20


class Examples(Dataset[Any]):
    def __init__(self, count: int = 4000, width: int = WIDTH) -> None:
        self.count, self.width = count, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.full((self.width,), float(index % 7)), index % 10


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (Examples()[index] for index in range(1000))


class Scale(nn.Module):
    """Keeps four tensors of the size of its input for the backward pass."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(1) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = torch.sin(x * self.weight)
        return self.norm(x.mean(dim=1, keepdim=True))


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return ((model(batch[0]).squeeze(1) - batch[1]) ** 2).mean()


def workload(model: nn.Module | None = None, **fields: Any) -> rb.Workload:
    model = model or Scale()
    given: dict[str, Any] = {"data": Examples(), "loss": loss} | fields
    optimizer = torch.optim.AdamW(model.parameters())
    return rb.Workload(model=model, optimizer=optimizer, **given)


def keeps_a_little_of_every_step() -> rb.Workload:
    """As an allocator that is never asked for the same sizes twice."""
    kept: list[torch.Tensor] = []

    def keep(model: nn.Module, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            kept.append(torch.ones(10 * MIB))  # 40 MiB, which malloc always maps anew
        return loss(model, batch)

    return workload(loss=keep)


def with_batch_norm() -> rb.Workload:
    return workload(Scale(norm=True))


def with_workers() -> rb.Workload:
    return workload(workers=1)


def of_a_stream() -> rb.Workload:
    return workload(data=Stream())


def compiled() -> rb.Workload:
    torch._dynamo.reset()
    model = Scale()
    return rb.Workload(
        model=torch.compile(model, backend="eager"),
        optimizer=torch.optim.AdamW(model.parameters()),
        loss=loss,
        data=Examples(),
    )


def that_is_killed() -> rb.Workload:
    def deadly(model: nn.Module, batch: Any) -> torch.Tensor:
        if len(batch[1]) > 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, batch)

    return workload(loss=deadly)


def that_crashes() -> rb.Workload:
    def crashing(model: nn.Module, batch: Any) -> torch.Tensor:
        if len(batch[1]) > 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        return loss(model, batch)

    return workload(loss=crashing)


def with_wrong_shapes() -> rb.Workload:
    return workload(nn.Linear(17, 1))


def too_large_to_build() -> rb.Workload:
    return workload(
        nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(8))),
        data=Examples(width=4096),
        loss=lambda model, batch: model(batch[0]).mean(),
    )


def too_large_for_any_machine() -> rb.Workload:
    return workload(
        nn.Sequential(*(nn.Linear(2**17, 2**17) for _ in range(4))),
        loss=lambda model, batch: model(batch[0]).mean(),
    )


def that_is_no_workload() -> str:
    return "a model"


def that_prints() -> rb.Workload:
    print("building")
    return workload(data=Examples(count=4, width=64))
