"""The longest sequence at which a batch fits, of a model with attention."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rightbatch as rb
from rightbatch._predict import solve as solving

WIDTH = 64


class Attention(nn.Module):
    """Memory that grows with the square of the length: its scores are not fused."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ self.keys(x).transpose(1, 2)).softmax(-1)
        out: Tensor = scores @ self.values(x)
        return out


def workload(length: int = 100, unused: int = 1) -> rb.Workload:
    model = Attention()
    return rb.Workload(
        model=model,
        loss=lambda model, batch: model(batch).square().mean(),
        optimizer=torch.optim.SGD(model.parameters()),
        data=[torch.rand(length, WIDTH) for _ in range(64)],
    )


def predict(factory: Any = workload, **options: Any) -> rb.Prediction:
    given: dict[str, Any] = {"batch": 4, "memory": "700MiB", "remedies": False}
    return rb.predict(factory, progress=False, **(given | options))


def test_the_batch_fits_at_the_answer_and_at_nothing_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(solving, "_START", 1792)  # near the answer: each value takes seconds
    found = predict(solve="length")
    length = found.solved["length"]
    assert found.to_dict()["solved"] == {"length": length}
    assert f"the largest length that fits is {length}" in str(found)
    assert length % 32 == 0 and length > 500
    assert (found.largest_batch_size or 0) >= 4
    longer = predict(lambda: workload(length + max(int(0.02 * length) // 32 * 32, 32)))
    assert (longer.largest_batch_size or 0) < 4
    # Scores and their softmax, and as much again in the backward pass: 3 to 5 squares.
    squares = (700 - 500) * 2**20 / (4 * 4 * length**2)
    assert 2.5 < squares < 5.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solve": "width"}, "workload() has no argument 'width'; it has length, unused"),
        ({"solve": "unused"}, "the memory of a step does not depend on unused"),
        ({"solve": "length", "memory": None}, "--solve length needs one GPU"),
        ({"solve": "length", "memory": None, "gpu": "all"}, "--solve length needs one GPU"),
        ({"solve": "batch"}, "the largest batch is part of every answer"),
    ],
)
def test_what_cannot_be_solved_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(rb.UsageError, match=re.escape(message)):
        predict(**options)


def test_nothing_fits_where_the_shortest_does_not() -> None:
    with pytest.raises(rb.NothingFitsError, match="a batch of 4 at length 32 needs more than"):
        predict(solve="length", memory="501MiB")


def test_steps_that_read_values_are_refused_with_the_way_round() -> None:
    def reading(length: int = 100) -> rb.Workload:
        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            out: Tensor = model(batch)
            return out[out > 0].square().mean()

        made = workload(length)
        return rb.Workload(made.model, loss, made.optimizer, made.data)

    with pytest.raises(rb.UsageError, match="predict at values of your choice"):
        predict(reading, solve="length")
