"""What `Elastic` refuses, by name and with the way round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from elastic_tasks import (
    OPTIMIZERS,
    classify,
    elastic,
    mlp,
    transformer,
)
from torch import Tensor, nn

import rightbatch as rb


class Sharpness(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        assert closure is not None, "requires a closure"


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, Sharpness])
def test_an_optimizer_whose_step_needs_a_closure_is_refused_by_name(optimizer: Any) -> None:
    model = nn.Linear(4, 1)
    step = rb.Elastic(model, optimizer(model.parameters(), lr=0.1), lambda m, b: m(b).mean())
    with pytest.raises(rb.UsageError, match=f"{optimizer.__name__}.step needs a closure.*fit --"):
        step(torch.rand(8, 4))


def test_an_optimizer_in_the_backward_pass_is_refused_where_parts_would_update_each() -> None:
    model = nn.Linear(4, 1)
    model.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    optimizer = OPTIMIZERS["SGD"](model)
    with pytest.raises(rb.UsageError, match=r"post-accumulate-grad hooks.*check=False"):
        rb.Elastic(model, optimizer, lambda m, b: m(b).mean())
    rb.Elastic(model, optimizer, lambda m, b: m(b).mean(), check=False)(torch.rand(8, 4))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda loss: {"loss": loss}, "a scalar tensor, not dict"),
        (lambda loss: (loss, 1), "a scalar tensor, not tuple"),
        (lambda loss: loss.item(), "a scalar tensor, not float"),
        (lambda loss: loss.expand(4), r"a scalar tensor, not Tensor of shape \(4,\)"),
        (Tensor.detach, "a tensor without a gradient"),
    ],
)
@pytest.mark.parametrize("size", ["auto", 4])
@pytest.mark.parametrize("check", [True, False])
def test_a_loss_that_is_no_scalar_is_refused(
    result: Any, words: str, size: Any, check: bool
) -> None:
    model, loss, batches = mlp(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = rb.Elastic(
        model, optimizer, lambda m, b: result(loss(m, b)), micro_batch_size=size, check=check
    )
    with pytest.raises(rb.UsageError, match=rf"loss\(model, batch\) returns {words}"):
        step(batches[0])


def test_a_batch_with_a_count_of_zero_raises_an_error() -> None:
    _, step, _ = elastic(transformer(), micro_batch_size=1, check=False)
    with pytest.raises(rb.UsageError, match="no mean to compute"):
        step(torch.zeros(3, 9, dtype=torch.int64))


@pytest.mark.parametrize("size", [0, -1, 2.5, "large", None])
def test_an_invalid_micro_batch_size_raises_an_error(size: Any) -> None:
    with pytest.raises(rb.UsageError, match="'auto' or an integer"):
        elastic(mlp(), micro_batch_size=size)


def test_a_model_without_trained_parameters_raises_an_error() -> None:
    model = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    with pytest.raises(rb.UsageError, match="no parameter of the model"):
        rb.Elastic(model, torch.optim.SGD(nn.Linear(1, 1).parameters()), classify)


def test_noise_with_a_scaler_raises_an_error_with_the_alternative() -> None:
    model, loss, _ = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(rb.UsageError, match="bf16"):
        rb.Elastic(model, optimizer, loss, scaler=scaler, noise=rb.NoiseScale(model))


@pytest.mark.parametrize(
    "criterion", [nn.CrossEntropyLoss(), nn.functional.cross_entropy, nn.MSELoss()]
)
def test_a_criterion_of_outputs_and_targets_is_refused_by_name(criterion: Any) -> None:
    model = nn.Linear(4, 2)
    with pytest.raises(rb.UsageError, match=r"\(model, batch\).*criterion\(model\(batch\[0\]\)"):
        rb.Elastic(model, OPTIMIZERS["SGD"](model), criterion)


def test_an_error_in_a_part_says_that_the_batch_was_split() -> None:
    """A batch whose first dimension is time, as long as the batch has examples."""
    model = nn.GRU(4, 2)
    labels = torch.randint(2, (6,))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0])[0][-1], batch[1])

    step = rb.Elastic(model, OPTIMIZERS["SGD"](model), loss, micro_batch_size=3)
    with pytest.raises(ValueError, match="batch_size") as raised:
        step((torch.rand(6, 6, 4), labels))
    assert "part of at most 3 examples, of 2 that split made" in raised.value.__notes__[0]
