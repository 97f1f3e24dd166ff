"""Workloads of a study that take milliseconds, and some that end badly."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import rightbatch as rb

EXAMPLES = 96


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.mse_loss(model(x).squeeze(1), y)


def regression(lr: float = 0.05, examples: int = EXAMPLES) -> rb.Workload:
    """Linear regression with noise; its least loss is about 0.01."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, 4, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1 * torch.randn(examples, generator=generator)
    model = nn.Linear(4, 1)
    return rb.Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        data=TensorDataset(x, y),
        evaluation_data=TensorDataset(x[:32], y[:32]),
        name="regression",
    )


def with_adam() -> rb.Workload:
    w = regression()
    optimizer = torch.optim.Adam(w.model.parameters(), lr=0.01)
    return rb.Workload(**vars(w) | {"optimizer": optimizer})


def diverging() -> rb.Workload:
    return regression(lr=1e6)


def failing_at_24() -> rb.Workload:
    """Every batch of 24 fails; of other sizes none."""
    w = regression()

    def picky(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if len(batch[0]) == 24:
            raise ValueError("24 is too much for me")
        return loss(model, batch)

    return rb.Workload(**vars(w) | {"loss": picky})


def short_of_memory() -> rb.Workload:
    """Batches of more than 8 need more than there is."""
    w = regression()

    def hungry(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if len(batch[0]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(model, batch)

    return rb.Workload(**vars(w) | {"loss": hungry, "split": lambda batch, n: [batch]})


def too_large() -> rb.Workload:
    """Its parameters take 64 MiB, their gradients as much, and Adam's state twice that."""
    model = nn.Sequential(nn.Linear(4, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)
    return rb.Workload(**vars(regression()) | {"model": model, "optimizer": optimizer})


def dying() -> rb.Workload:
    """The process is gone in the middle, without a word."""
    w = regression()

    def deadly(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        os._exit(7)
        return loss(model, batch)

    return rb.Workload(**vars(w) | {"loss": deadly})


def slow() -> rb.Workload:
    """A fiftieth of a second a step."""
    w = regression()

    def slowly(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        time.sleep(0.02)
        return loss(model, batch)

    return rb.Workload(**vars(w) | {"loss": slowly})


def in_turns() -> rb.Workload:
    """The first run of a study trains at once, any other waits for a file `go`.

    `RIGHTBATCH_TEST_TURNS` is the folder of that file.
    """
    w, turns, mine = regression(), Path(os.environ["RIGHTBATCH_TEST_TURNS"]), uuid.uuid4().hex

    def waiting(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        with suppress(FileExistsError), (turns / "first").open("x") as file:
            file.write(mine)
        while (turns / "first").read_text() != mine and not (turns / "go").exists():
            time.sleep(0.01)
        return loss(model, batch)

    return rb.Workload(**vars(w) | {"loss": waiting})


def measured() -> rb.Workload:
    w = regression()

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        return {"norm": float(model.weight.norm())}  # type: ignore[union-attr]

    return rb.Workload(**vars(w) | {"evaluate": evaluate})


def broken() -> rb.Workload:
    raise RuntimeError("there is no data here")
