"""Modules that a loss uses beside the model: found, moved, and counted by `predict`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch import Workload
from rightbatch._predict.follow import Follower
from rightbatch._predict.variant import Variant
from rightbatch._workload.held_modules import held_modules, move_modules

TEACHER = nn.Linear(8, 1)
Loss = Any


def distance(model: nn.Module, teacher: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - teacher(batch)).square().mean()


def by_global(model: nn.Module, batch: Tensor) -> Tensor:
    return distance(model, TEACHER, batch)


class Criterion:
    def __init__(self) -> None:
        self.parts = {"teacher": nn.Linear(8, 1)}

    def __call__(self, model: nn.Module, batch: Tensor) -> Tensor:
        return distance(model, self.parts["teacher"], batch)

    def method(self, model: nn.Module, batch: Tensor) -> Tensor:
        return self(model, batch)


def described(loss: Loss, model: nn.Module | None = None) -> Workload:
    model = model or nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Workload(model, loss, optimizer, [torch.ones(8)] * 8)  # type: ignore[arg-type]


def test_modules_are_found_wherever_a_loss_keeps_them() -> None:
    teacher = nn.Linear(8, 1)
    criterion = Criterion()
    losses: dict[str, tuple[Loss, nn.Module]] = {
        "closure": (lambda model, batch: distance(model, teacher, batch), teacher),
        "default": (lambda model, batch, given=teacher: distance(model, given, batch), teacher),
        "global": (by_global, TEACHER),
        "helper": (lambda model, batch: by_global(model, batch), TEACHER),
        "partial": (partial(distance, teacher=teacher), teacher),
        "object": (criterion, criterion.parts["teacher"]),
        "method": (criterion.method, criterion.parts["teacher"]),
    }
    for name, (loss, wanted) in losses.items():
        assert held_modules(described(loss)) == [wanted], name


def test_parts_of_the_model_are_not_held() -> None:
    model = nn.Sequential(nn.Linear(8, 1))
    inner = model[0]
    loss = lambda model, batch: distance(model, inner, batch)  # noqa: E731
    assert held_modules(described(loss, model)) == []


def test_held_modules_are_moved_with_the_model() -> None:
    teacher = nn.Linear(8, 1)
    move_modules(described(lambda model, batch: distance(model, teacher, batch)), "meta")
    assert teacher.weight.is_meta


def test_predict_counts_the_weights_of_a_teacher() -> None:
    """A frozen teacher lies on the device beside the model that is trained."""

    def peak(width: int) -> int:
        teacher = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 1)).requires_grad_(False)
        loss = lambda model, batch: distance(model, teacher, batch)  # noqa: E731
        (trace,) = Follower(lambda: described(loss)).traces([1], Variant(capability=8.6))
        return trace.peak_bytes

    weights = 4 * (8 + 1 + 1)
    grown = peak(20_000) - peak(10_000)
    # Rows of the hidden layer: weights, and a few activations of one example.
    assert 10_000 * weights <= grown <= 10_000 * (weights + 16)
