"""Lazy parameters get their shapes before anything counts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rightbatch import UsageError, Workload
from rightbatch._workload.lazy import materialize


def workload(model: nn.Module, loss: Any = None, data: Any = None) -> Workload:
    return Workload(
        model=model,
        loss=loss or (lambda model, batch: model(batch).mean()),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data=data or [None, torch.ones(3, 6), torch.ones(3, 6)],
    )


def test_the_shapes_come_from_a_batch_and_the_optimizer_holds_the_same_parameters() -> None:
    made = workload(nn.Sequential(nn.LazyConv1d(4, 3), nn.LazyBatchNorm1d(), nn.Flatten()))
    materialize(made)
    assert [tuple(p.shape) for p in made.optimizer.param_groups[0]["params"]] == [
        (4, 3, 3),
        (4,),
        (4,),
        (4,),
    ]
    assert made.model.training
    assert made.model[1].num_batches_tracked == 0, "the pass has changed no statistics"
    assert all(p.grad is None for p in made.model.parameters())


def test_a_model_without_lazy_parameters_is_not_run() -> None:
    def loss(model: Any, batch: Any) -> Any:
        raise AssertionError("run")

    materialize(workload(nn.Linear(6, 2), loss))


def test_what_the_pass_does_not_reach_is_named() -> None:
    model = nn.ModuleDict({"used": nn.LazyLinear(2), "unused": nn.LazyLinear(2)})
    with pytest.raises(UsageError, match=r"unused\.weight, unused\.bias.*in the factory"):
        materialize(workload(model, lambda model, batch: model["used"](batch).mean()))


def test_weights_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Linear(6, 2)
    with pytest.raises(UsageError, match=r"meta device.*to_empty"):
        materialize(workload(model))
