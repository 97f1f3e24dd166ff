"""Buffers that have grown are restored; parameters of another shape are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rightbatch._training.step import resize_buffers


def model(rows: int, width: int = 3) -> nn.Module:
    inner = nn.Linear(width, 2)
    inner.register_buffer("bank", torch.full((rows, 2), float(rows)))
    return nn.Sequential(nn.Identity(), inner)


def test_a_grown_buffer_takes_the_shape_of_the_state() -> None:
    grown, fresh = model(5), model(0)
    weight = fresh[1].weight
    resize_buffers(fresh, grown.state_dict())
    fresh.load_state_dict(grown.state_dict())
    assert torch.equal(fresh[1].bank, grown[1].bank)
    assert fresh[1].weight is weight, "the optimizer holds it"


def test_a_parameter_of_another_shape_is_still_an_error() -> None:
    other, fresh = model(5, width=4), model(0)
    resize_buffers(fresh, other.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        fresh.load_state_dict(other.state_dict())
