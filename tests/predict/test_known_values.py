"""Steps that read values are followed with fake tensors, and have the events of real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from rightbatch import Workload
from rightbatch._errors import UsageError
from rightbatch._predict import follow
from rightbatch._predict.follow import Follower
from rightbatch._predict.known_values import MOST_KEPT_ELEMENTS
from rightbatch._predict.trace import Trace
from rightbatch._predict.variant import Variant

WIDTH, LARGE_WIDTH, CLASSES = 32, 512, 4
assert LARGE_WIDTH**2 > MOST_KEPT_ELEMENTS


class Labelled(Dataset[tuple[Tensor, int]]):
    """Rows with labels; every second label is one that a loss leaves out."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(self.width), index % CLASSES if index % 2 else -1


class Layer(nn.Linear):
    """A layer whose forward pass reads values, as those of adapters do."""

    def __init__(self, width: int, read: Callable[[Layer, Tensor], Tensor]) -> None:
        super().__init__(width, width)
        self.register_buffer("indices", torch.arange(width) % 5)
        self.register_buffer("scale", torch.tensor(2.0))
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, super().forward(x))


def item(layer: Layer, x: Tensor) -> Tensor:
    return x * layer.scale.item()


def likely_draw(layer: Layer, x: Tensor) -> Tensor:
    return x.relu().exp() if torch.rand(1) > 0.05 else x


def count(layer: Layer, x: Tensor) -> Tensor:
    return x[:, : torch.bincount(layer.indices).max()].sum(1, keepdim=True) + x


def distinct(layer: Layer, x: Tensor) -> Tensor:
    values, inverse = torch.unique(layer.indices, return_inverse=True)
    return x + x.new_ones(len(values))[inverse]


def mask(layer: Layer, x: Tensor) -> Tensor:
    return x[:, layer.indices > 2].exp().sum(1, keepdim=True) + x


def masked_select(layer: Layer, x: Tensor) -> Tensor:
    return x.masked_select(layer.indices > 2).exp().sum() + x


def listed(layer: Layer, x: Tensor) -> Tensor:
    parts = x.split(torch.bincount(layer.indices).tolist(), dim=1)
    return torch.cat([part.sin() for part in parts], 1)


def in_place(layer: Layer, x: Tensor) -> Tensor:
    counter = torch.zeros(3, dtype=torch.long)
    view = counter[1:]
    counter.add_(2)
    view += 1
    return x.exp() * x if int(counter.sum()) == 8 else x


def checked(layer: Layer, x: Tensor) -> Tensor:
    if not layer.indices.any():
        raise ValueError("no indices")
    return x * (layer.scale > 1)


READERS = [item, likely_draw, count, distinct, mask, masked_select, listed, in_place, checked]


def loss(model: nn.Module, batch: Any) -> Tensor:
    x, labels = batch
    is_labelled = labels >= 0
    return nn.functional.cross_entropy(model(x)[is_labelled], labels[is_labelled])


def workload_of(
    *layers: Callable[[], nn.Module], width: int = WIDTH, loss: Any = loss
) -> Callable[[], Workload]:
    def factory() -> Workload:
        model = nn.Sequential(*(make() for make in layers), nn.Linear(width, CLASSES))
        return Workload(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), Labelled(width))

    return factory


def both(make: Callable[[], nn.Module], batch_size: int, **more: Any) -> tuple[Trace, Trace]:
    """Return the traces with fake and with real tensors."""
    torch.manual_seed(1)
    fake, real = (Follower(workload_of(make, **more)) for _ in range(2))
    real.use_real_tensors(RuntimeError("for comparison"))
    (from_fake,), (from_real,) = (one.traces([batch_size], Variant()) for one in (fake, real))
    assert fake.how == "fake"
    return from_fake, from_real


@pytest.mark.parametrize("width", [WIDTH, LARGE_WIDTH])
@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
def test_a_step_that_reads_values_has_the_events_of_the_real_step(read: Any, width: int) -> None:
    from_fake, from_real = both(lambda: Layer(width, read), 6, width=width)
    assert from_fake.sizes == from_real.sizes
    assert from_fake.order == from_real.order


def unknown(layer: Layer, x: Tensor) -> Tensor:
    return x * 2 if torch.isfinite(x).all() and x.std().item() < 1e9 else x.exp().exp()


def test_an_unknown_number_of_a_small_model_is_that_of_real_tensors() -> None:
    follower = Follower(workload_of(lambda: Layer(LARGE_WIDTH, unknown), width=LARGE_WIDTH))
    follower.traces([6], Variant())
    assert follower.how == "real"


def test_an_unknown_number_of_a_large_model_is_assumed_and_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "REAL_LIMIT", 0)
    make = workload_of(lambda: Layer(LARGE_WIDTH, unknown), width=LARGE_WIDTH)
    fake, real = Follower(make), Follower(make)
    real.use_real_tensors(RuntimeError("for comparison"))
    (from_fake,), (from_real,) = (one.traces([6], Variant()) for one in (fake, real))
    assert fake.how == "fake"
    assert "they were assumed" in fake.notes[0]
    assert from_fake.sizes == from_real.sizes


def chosen(layer: Layer, x: Tensor) -> Tensor:
    return x[:, : int(x.argmax()) + 1].sum(1, keepdim=True) + x


def endless(layer: Layer, x: Tensor) -> Tensor:
    while x.std().item() > 0:
        x = x * 0.5
    return x


def sparse(layer: Layer, x: Tensor) -> Tensor:
    at = torch.arange(LARGE_WIDTH).expand(2, -1)
    shape = (LARGE_WIDTH, LARGE_WIDTH)
    return x @ torch.sparse_coo_tensor(at, layer.bias, shape, check_invariants=False).to_dense()


@pytest.mark.parametrize("read", [chosen, endless])
def test_a_value_that_cannot_be_assumed_is_refused_by_name_if_the_model_is_large(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "REAL_LIMIT", 0)
    monkeypatch.setattr(follow, "BUILD_LIMIT", 0)
    monkeypatch.setattr("rightbatch._predict.known_values._MOST_ASSUMED", 100)
    follower = Follower(workload_of(lambda: Layer(LARGE_WIDTH, read), width=LARGE_WIDTH))
    with pytest.raises(UsageError, match=r"_local_scalar_dense.*rightbatch fit"):
        follower.traces([6], Variant())


def test_weights_of_sparse_matrices_are_followed_with_real_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make = workload_of(lambda: Layer(LARGE_WIDTH, sparse), width=LARGE_WIDTH)
    follower = Follower(make)
    follower.traces([6], Variant())
    assert follower.how == "real"
    monkeypatch.setattr(follow, "BUILD_LIMIT", 0)
    with pytest.raises(UsageError, match="_sparse_coo_tensor"):
        Follower(make).traces([6], Variant())


def test_real_tensors_that_do_not_fit_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Follower, "use_real_tensors", out_of_memory)
    follower = Follower(workload_of(lambda: Layer(LARGE_WIDTH, chosen), width=LARGE_WIDTH))
    with pytest.raises(UsageError, match=r"_local_scalar_dense.*rightbatch fit"):
        follower.traces([6], Variant())


def test_weights_are_unknown_once_they_were_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(LARGE_WIDTH, LARGE_WIDTH)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(x) * self.scale.item() * self.scale

    monkeypatch.setattr(follow, "REAL_LIMIT", 0)
    follower = Follower(workload_of(Scaled, width=LARGE_WIDTH))
    follower.traces([6], Variant(inference=True))
    assert not follower.notes, "known before a step"
    follower.traces([6], Variant())
    assert "they were assumed" in follower.notes[0]


def test_random_branches_do_not_depend_on_the_batch_size() -> None:
    def drop(layer: Layer, x: Tensor) -> Tensor:
        kept = x.new_empty((len(x), 1)).bernoulli_(0.5)
        return (x * kept).exp() if torch.rand(1) > 0.3 else x

    layers = [lambda: Layer(WIDTH, drop)] * 8
    follower = Follower(workload_of(*layers, loss=lambda model, batch: model(batch[0]).sum()))
    low, high, checked = follower.traces([2, 4, 7], Variant())
    assert follower.how == "fake"
    assert low.is_like(high)
    assert low.is_like(checked)
