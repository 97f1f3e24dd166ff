"""The step of a framework is followed like the same step of a workload."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import rightbatch
from rightbatch import Workload
from rightbatch._errors import UsageError
from rightbatch._predict.follow import Follower
from rightbatch._predict.follow_framework import FrameworkFollower
from rightbatch._predict.recorder import transfer_batch
from rightbatch._predict.variant import Variant
from rightbatch._training.protocol import Ability, Training

WIDTH = 64


class Rows(Dataset[Tensor]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Tensor:
        return torch.ones(WIDTH)


class StepOfItsOwn(Training):
    """A framework with a step of its own: one linear layer, AdamW, and an average of weights."""

    examples, varies = 100, False
    integration, abilities = "a framework", frozenset({Ability.STEP, Ability.FOLLOW})

    def __init__(self) -> None:
        self.model, self.average = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.optimizer = torch.optim.AdamW(self.model.parameters())

    def session(self, device: str, *, seed: int, inference: bool) -> StepOfItsOwn:
        return self

    def modules(self) -> list[nn.Module]:
        return [self.model, self.average]

    @contextmanager
    def as_on_cuda(self) -> Iterator[None]:
        yield

    def step(self, batch_size: int) -> None:
        self.optimizer.zero_grad()
        # The host makes more than what arrives on the device.
        self.batch = transfer_batch(lambda: torch.ones(2 * batch_size, WIDTH)[:batch_size].clone())
        torch.tanh(self.model(self.batch)).square().mean().backward()
        self.optimizer.step()

    def evaluate(self, batch_size: int) -> int:
        with torch.no_grad():
            for image in transfer_batch(lambda: torch.ones(batch_size, WIDTH)):
                self.average(image)
        return batch_size

    def close(self) -> None: ...


def test_an_integrations_step_is_followed_as_the_same_step_of_a_workload_is() -> None:
    (theirs,) = FrameworkFollower(StepOfItsOwn()).traces([64], Variant())

    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(model(x)).square().mean()

    def ours() -> Workload:
        model = nn.Linear(WIDTH, WIDTH)
        return Workload(model, loss, torch.optim.AdamW(model.parameters()), Rows())

    (same,) = Follower(ours).traces([64], Variant())
    weights = 4 * WIDTH * (WIDTH + 1)
    expected = same.breakdown()
    # The average of the weights is all that it has more.
    assert theirs.breakdown() == expected | {"other": expected["other"] + weights}


def test_an_evaluation_image_by_image_is_condensed_to_its_peak() -> None:
    low, high = FrameworkFollower(StepOfItsOwn()).traces([64, 128], Variant())
    assert not low.is_like(high)
    short, long = low.condensed(), high.condensed()
    assert short.is_like(long)
    assert short.peak_bytes == pytest.approx(low.peak_bytes, rel=0.001)
    assert list(short.live_bytes())[-1] == list(low.live_bytes())[short.phases[-1][0] - 1]


def test_variants_of_an_integrations_step_are_refused() -> None:
    with pytest.raises(UsageError, match="as the framework runs it"):
        FrameworkFollower(StepOfItsOwn()).traces([2], Variant(precision="bf16"))


class WithoutFollowing(Training):
    integration, abilities = "a framework", frozenset({Ability.STEP})


def test_the_step_of_an_integration_that_cannot_be_followed_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"predict needs a step .* a framework .*rightbatch fit"):
        rightbatch.predict(WithoutFollowing(), batch=2, progress=False)
