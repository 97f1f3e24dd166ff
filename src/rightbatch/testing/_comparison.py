"""Comparisons that the contracts share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
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


def same_states(one: Any, other: Any) -> bool:
    """Whether two random states, tensors and arrays in them included, are the same."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same_states(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_states, one, other))
    return bool((one == other).all()) if hasattr(one, "all") else bool(one == other)
