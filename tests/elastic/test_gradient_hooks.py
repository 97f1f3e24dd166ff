"""Hooks on parameters see the gradient of the whole batch, once, as in a loop without parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rightbatch import Elastic

Batch = tuple[Tensor, Tensor]
HOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "clip by value": lambda gradient: gradient.clamp(-0.05, 0.05),
    "sign": torch.sign,
    "mask": lambda gradient: gradient * (torch.arange(gradient.shape[-1]) % 2),
}


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]).squeeze(1) - batch[1]).square().mean()


def network(hook: Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    for parameter in model.parameters():
        parameter.register_hook(hook)
    return model


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_hooks_change_the_whole_gradient_as_in_a_plain_loop(
    hook: Callable[[Tensor], Tensor], clip_norm: float | None
) -> None:
    """Clipping the shares of parts is not clipping their sum (swathikirans/GSM#22)."""
    batch = torch.randn(12, 4), torch.randn(12) * 3
    plain, parts = network(hook), network(hook)
    step = Elastic(
        parts,
        torch.optim.SGD(parts.parameters(), lr=0.1),
        loss,
        micro_batch_size=5,
        clip_norm=clip_norm,
    )
    for _ in range(3):
        assert step(batch).micro_batches == 3
        loss(plain, batch).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip_norm)
        for parameter in plain.parameters():
            assert parameter.grad is not None
            parameter.data -= 0.1 * parameter.grad
            parameter.grad = None
    for own, wanted in zip(parts.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, wanted)


def test_hooks_are_called_once_per_update_and_stay_registered() -> None:
    calls: list[Tensor] = []

    def observed(gradient: Tensor) -> Tensor:
        calls.append(gradient.clone())
        return gradient

    model = network(observed)
    batch = torch.randn(12, 4), torch.randn(12)
    step = Elastic(model, torch.optim.SGD(model.parameters(), lr=0.0), loss)
    step(batch)  # with the passes that compare gradients and measure the size
    step.use(3)
    calls.clear()
    step(batch)
    assert len(calls) == 4
    loss(model, batch).backward()
    by_shape = {tuple(gradient.shape): gradient for gradient in calls[4:]}
    assert len(by_shape) == 4
    for gradient in calls[:4]:
        torch.testing.assert_close(gradient, by_shape[tuple(gradient.shape)])
