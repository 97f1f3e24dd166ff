"""Rules for the learning rate against the formulas they are from."""

from __future__ import annotations

import importlib
import math
import sys

import pytest
import torch
from torch import nn

from rightbatch._training.scaling import betas_of, scale_optimizer, scaling


@pytest.mark.parametrize("noise_scale", [1.0, 30.0, 1e6])
@pytest.mark.parametrize("after", [4, 16, 256])
def test_sgd_scales_by_the_gain_of_adascale(noise_scale: float, after: int) -> None:
    """(var + sqr)/(var/s + sqr) for s times the batch, var the variance of the gradient at B."""
    var, sqr, s = noise_scale / 16, 1.0, after / 16
    rule = scaling(None, 16, after, noise_scale)
    assert rule.learning_rate_factor == pytest.approx((var + sqr) / (var / s + sqr))
    assert rule.beta2 is None and "AdaScale" in rule.rule


def test_sgd_is_linear_far_below_the_noise_scale_and_constant_far_above() -> None:
    assert scaling(None, 16, 64, math.inf).learning_rate_factor == 4
    assert scaling(None, 16, 64, 1e9).learning_rate_factor == pytest.approx(4, rel=1e-6)
    assert scaling(None, 16, 64, 1e-3).learning_rate_factor == pytest.approx(1, rel=1e-3)


def test_adam_scales_by_the_square_root_with_beta2_and_epsilon() -> None:
    rule = scaling((0.9, 0.999), 16, 64, 100.0)
    assert rule.learning_rate_factor == 2
    assert rule.beta2 == pytest.approx(1 - 4 * 0.001)
    assert rule.epsilon_factor == pytest.approx(0.5)


ADAPTIVE: dict[str, tuple[float, float] | None] = {
    "SGD": None,
    "ASGD": None,
    "Adam": (0.9, 0.999),
    "NAdam": (0.9, 0.999),
    "Adamax": (0.9, 0.999),
    "RMSprop": (0.0, 0.99),
    "Adadelta": (0.0, 0.9),
    "Adagrad": (0.0, 1.0),
    "Adafactor": (0.0, 1.0),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_optimizers_that_divide_by_mean_squares_are_adaptive(name: str) -> None:
    """RMSprop is in Malladi's theorem; they differ from SGD in what noise does to a step."""
    from rightbatch.integrations.command.launch import SITE

    optimizer = getattr(torch.optim, name)([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert betas_of(optimizer) == ADAPTIVE[name]
    sys.path.insert(0, str(SITE))
    try:
        decays = importlib.import_module("_rightbatch_agent.decays")
    finally:
        sys.path.remove(str(SITE))
    found = decays.betas_of(optimizer, optimizer.param_groups[0])
    assert (None if found is None else tuple(found)) == ADAPTIVE[name]


def test_rmsprop_scales_by_the_square_root_with_alpha_and_epsilon() -> None:
    optimizer = torch.optim.RMSprop([nn.Parameter(torch.zeros(1))], lr=0.1, alpha=0.99, eps=1e-8)
    rule = scaling(betas_of(optimizer), 16, 64, 100.0)
    scale_optimizer(optimizer, rule.batch_factor, rule.learning_rate_factor)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.2)
    assert group["alpha"] == rule.beta2 == pytest.approx(1 - 4 * 0.01)
    assert group["eps"] == pytest.approx(0.5e-8)


def test_adagrad_scales_by_the_square_root_alone() -> None:
    optimizer = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))], lr=0.1)
    rule = scaling(betas_of(optimizer), 16, 64, 100.0)
    assert (rule.learning_rate_factor, rule.beta2, rule.epsilon_factor) == (2, None, None)
    assert "adaptive" in rule.rule
    before = dict(optimizer.param_groups[0], lr=0.2)
    scale_optimizer(optimizer, rule.batch_factor, rule.learning_rate_factor)
    assert optimizer.param_groups[0] == before


def test_beta2_never_loses_its_memory() -> None:
    beta2 = scaling((0.9, 0.95), 1, 64, 100.0).beta2
    assert beta2 == pytest.approx(0.95**64)


def test_an_optimizer_and_its_schedule_go_on_from_the_new_rate() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 2),
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1)),
        ],
        milestones=[2],
    )
    optimizer.step()
    schedule.step()
    scale_optimizer(optimizer, 4, 2, schedule)
    group = optimizer.param_groups[0]
    assert group["lr"] == pytest.approx(0.2)
    assert group["betas"][1] == pytest.approx(0.996)
    assert group["eps"] == pytest.approx(0.5e-8)
    rates = []
    for _ in range(3):
        optimizer.step()
        schedule.step()
        rates.append(group["lr"])
    assert rates == pytest.approx([0.2, 0.1, 0.2 / 3])


def test_a_cycle_that_sets_rates_of_its_own_goes_on_from_the_new_ones() -> None:
    def rates(factor: float) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
        scale_optimizer(optimizer, factor, factor, schedule)
        found = []
        for _ in range(9):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    assert rates(2.0) == pytest.approx([2 * rate for rate in rates(1.0)])
