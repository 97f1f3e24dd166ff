"""Models are built without filling their weights: no memory, no time; data keep their values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rightbatch import Workload
from rightbatch._device.proc import resident_bytes
from rightbatch._errors import UsageError
from rightbatch._predict.build import parameter_bytes
from rightbatch._predict.follow import Follower
from rightbatch._predict.unfilled import HUGE, LARGE, Unfilled, is_unfilled
from rightbatch._predict.variant import Variant

WIDTH = 8192
SIDE = 1024
assert SIDE * SIDE >= LARGE


class Adapted(nn.Module):
    """A frozen layer and a low-rank product, as adapters add it."""

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)
        nn.init.zeros_(self.up.weight)
        # A magnitude of the whole weight, as DoRA has it, and a check of it.
        merged = base.weight + self.up.weight @ self.down.weight
        self.magnitude = nn.Parameter(merged.norm(dim=1).detach())
        if not torch.isfinite(merged).all() or (self.magnitude == 0).any():
            raise ValueError("the weight cannot be adapted")

    def forward(self, x: Tensor) -> Tensor:
        return (self.base(x) + self.up(self.down(x))) * self.magnitude


def workload_of(make: Callable[[], nn.Module], width: int) -> Callable[[], Workload]:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        dtype = next(model.parameters()).dtype
        return model(batch.to(dtype)).float().square().mean()

    def factory() -> Workload:
        model = make()
        trained = [p for p in model.parameters() if p.requires_grad]
        return Workload(model, loss, torch.optim.AdamW(trained), list(torch.zeros(4, width)))

    return factory


def half_precision() -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(12))).to(torch.bfloat16)


def adapted() -> nn.Module:
    model = half_precision()
    for index, layer in enumerate(model):
        assert isinstance(layer, nn.Linear)
        model[index] = Adapted(layer)  # type: ignore[index]
    return model


@pytest.mark.parametrize("make", [half_precision, adapted])
def test_a_model_of_gigabytes_is_converted_and_adapted_in_no_memory(
    make: Callable[[], nn.Module],
) -> None:
    before = resident_bytes()
    follower = Follower(workload_of(make, WIDTH))
    (trace,) = follower.traces([2], Variant(capability=8.0))
    assert resident_bytes() - before < 12 * WIDTH * WIDTH * 2 / 4, "a quarter of the weights"
    assert follower.how == "fake"
    weights = 12 * (WIDTH * WIDTH + WIDTH) * 2
    assert trace.breakdown()["parameters"] == pytest.approx(weights, rel=0.01)
    assert trace.peak_bytes >= parameter_bytes(follower.workload)


@pytest.mark.parametrize("make", [half_precision, adapted])
def test_the_events_are_those_of_the_filled_model(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "WIDTH", 64)
    fake, real = (Follower(workload_of(make, 64)) for _ in range(2))
    real.use_real_tensors(RuntimeError("for comparison"))
    (from_fake,), (from_real,) = (one.traces([3], Variant()) for one in (fake, real))
    assert from_fake.order == from_real.order
    assert from_fake.sizes == from_real.sizes


INITIALIZERS: dict[str, Callable[[Tensor], Any]] = {
    name: getattr(nn.init, name)
    for name in (
        "kaiming_normal_",
        "kaiming_uniform_",
        "normal_",
        "ones_",
        "orthogonal_",
        "trunc_normal_",
        "uniform_",
        "xavier_normal_",
        "xavier_uniform_",
        "zeros_",
    )
} | {"sparse_": lambda weight: nn.init.sparse_(weight, 0.1)}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_no_initialization_of_a_large_weight_is_computed(name: str) -> None:
    with Unfilled():
        layer = nn.Linear(SIDE, SIDE, bias=False)
        INITIALIZERS[name](layer.weight)
    assert is_unfilled(layer.weight)
    assert not layer.weight.any(), "no page was written"


def test_copies_conversions_and_products_of_unfilled_weights_are_unfilled() -> None:
    with Unfilled():
        weight = nn.Linear(SIDE, SIDE, bias=False).weight
        made = [
            weight.to(torch.bfloat16),
            weight.detach().clone(),
            copy.deepcopy(weight),
            weight @ weight,
            weight + torch.ones(SIDE),
            torch.cat([weight, weight]),
            torch.linalg.svd(weight, full_matrices=False)[0],
        ]
        small = weight.std(dim=0)
    assert all(map(is_unfilled, made))
    assert all(not tensor.float().any() for tensor in made)
    assert is_unfilled(small)
    assert small.isfinite().all()


def test_small_tensors_and_data_have_their_values() -> None:
    generator = torch.Generator().manual_seed(0)
    with Unfilled():
        bias = nn.init.constant_(torch.empty(SIDE), 3.0)
        lengths = (torch.rand(LARGE, generator=generator) * 512).long()
        rows = torch.empty(LARGE, 2)
        rows.copy_(torch.ones(LARGE, 2))
        table = torch.zeros(SIDE, SIDE)
        table[5, 7] = 1
        weights = torch.ones(LARGE)
        indices = torch.arange(HUGE)
    assert (bias == 3).all()
    assert lengths.float().mean() == pytest.approx(255.5, rel=0.01)
    assert (rows == 1).all()
    assert table.sum() == 1
    assert (weights == 1).all()
    assert indices[-1] == HUGE - 1


def test_zeros_have_their_values_whatever_their_size() -> None:
    with Unfilled():
        assert (torch.zeros(HUGE) + 2).mean() == 2
        weight = nn.Parameter(torch.zeros(HUGE // SIDE, SIDE))
        assert is_unfilled(weight.to(torch.bfloat16)), "weights take no memory"


@pytest.mark.parametrize(
    "count",
    [
        lambda y: int(y.max()) + 1,
        lambda y: len(y.unique()),
        lambda y: max(y[:1000].tolist()) + 1,
        lambda y: y.numpy().max() + 1,
        lambda y: len(np.unique(y)),
    ],
)
def test_a_whole_number_that_is_computed_from_unfilled_tensors_is_not_guessed(
    count: Callable[[Tensor], int],
) -> None:
    """Otherwise a layer for ten classes would have one output."""

    def factory() -> Workload:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(HUGE // 64, 64, generator=generator)
        y = (x @ torch.randn(64, 10, generator=generator)).argmax(1)
        model = nn.Linear(64, int(count(y)))
        return Workload(
            model,
            lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            torch.optim.SGD(model.parameters(), lr=0.1),
            TensorDataset(x, y),
        )

    model = Follower(factory).workload.model
    assert isinstance(model, nn.Linear) and model.out_features == 10


def test_outside_nothing_is_skipped() -> None:
    with Unfilled():
        nn.Linear(SIDE, SIDE)
    assert nn.Linear(SIDE, SIDE).weight.std() > 0


def test_lazy_modules_get_their_shapes() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(SIDE), nn.ReLU(), nn.LazyLinear(SIDE))

    (trace,) = Follower(workload_of(lazy, SIDE)).traces([2], Variant())
    assert trace.breakdown()["parameters"] == 4 * 2 * (SIDE * SIDE + SIDE)


def test_a_constructor_that_reads_weights_is_run_with_filled_ones() -> None:
    follower = Follower(workload_of(lambda: rescaled(nn.Linear(SIDE, SIDE)), SIDE))
    assert follower.traces([2], Variant())[0].peak_bytes > 4 * SIDE * SIDE


def rescaled(layer: nn.Module) -> nn.Module:
    """Divide by a number that is zero if the weights have no values."""
    first, *_ = (parameter.detach() for parameter in layer.parameters())
    if len({*first[0].tolist()}) == 1:
        raise KeyError(1)
    return layer


def test_weights_that_are_read_and_do_not_fit_are_refused_by_name() -> None:
    def read() -> nn.Module:
        layer = nn.Linear(SIDE, SIDE)
        if not is_unfilled(layer.weight):
            raise MemoryError
        return rescaled(layer)

    with pytest.raises(UsageError, match="reads values of its weights"):
        Follower(workload_of(read, SIDE))
