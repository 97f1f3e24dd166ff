"""What is trained here: scikit-learn's handwritten digits, with a convolution, and with less."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import rightbatch as rb

CONVOLUTION = f"{Path(__file__)}:convolution"
UNHURRIED = f"{Path(__file__)}:unhurried"
EXAMPLES, HELD_OUT = 1437, 360
CHANNELS = 96
PAUSE = 0.02  # seconds


def convolution() -> rb.Workload:
    """Steps of 10 to 50 ms on one or two cores, with batches of 32 to 128."""
    model = nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 8 * CHANNELS, 10),
    )
    return _of(model, torch.optim.SGD(model.parameters(), lr=0.01), "convolution")


def unhurried() -> rb.Workload:
    """Steps of little work and a pause, so that runs of seconds leave the processor to others."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    w = _of(model, torch.optim.SGD(model.parameters(), lr=0.1), "unhurried")

    def paused(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if model.training:
            time.sleep(PAUSE)
        return _loss(model, batch)

    return rb.Workload(**vars(w) | {"loss": paused})


def _of(model: nn.Module, optimizer: torch.optim.Optimizer, name: str) -> rb.Workload:
    train, held_out = _data()

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        device = next(model.parameters()).device
        images, labels = (tensor.to(device) for tensor in held_out.tensors)
        return {"accuracy": float((model(images).argmax(1) == labels).float().mean())}

    return rb.Workload(
        model=model,
        loss=_loss,
        optimizer=optimizer,
        data=train,
        evaluation_data=held_out,
        evaluate=evaluate,
        name=name,
    )


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return functional.cross_entropy(model(images), labels)


def _data() -> tuple[TensorDataset, TensorDataset]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    return TensorDataset(x[:EXAMPLES], y[:EXAMPLES]), TensorDataset(x[EXAMPLES:], y[EXAMPLES:])
