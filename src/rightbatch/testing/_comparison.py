"""Comparisons that the contracts share."""

from __future__ import annotations

from unittest import SkipTest

import torch
from torch import Tensor, nn

from rightbatch._training.protocol import Ability, Training


def skip_without(training: Training, ability: Ability) -> None:
    """Skip a test of an ability that the training does not declare."""
    if ability not in training.abilities:
        raise SkipTest(f"the training does not offer {ability.value}")


def copies(model: nn.Module) -> list[Tensor]:
    """Return copies of a model's parameters."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(before: list[Tensor], model: nn.Module) -> bool:
    """Whether a model's parameters equal earlier copies, bit for bit."""
    now = list(model.parameters())
    return all(torch.equal(one, other) for one, other in zip(before, now, strict=True))
