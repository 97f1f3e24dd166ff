"""The order of a sampler: an epoch is drawn alike again, and the sampler stays the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import rightbatch as rb

pytest.importorskip("lightning")
from kinds_lightning_data import Three
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

from rightbatch.integrations._loaders import SamplerOrder, loader_data

pytestmark = pytest.mark.filterwarnings("ignore")


class Stateful:
    """A sampler whose epochs depend on how often it was asked; its data is not to be copied."""

    def __init__(self, data: Any) -> None:
        self.data_source = data
        self.asked = 0

    def __iter__(self) -> Iterator[int]:
        self.asked += 1
        return iter([self.asked])


class Uncopied(Stateful):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot copy a lock")


class Data(Three):
    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("the data is copied")


def stateful(kind: Any) -> SamplerOrder:
    order = loader_data(DataLoader(Data(), sampler=kind(Data()))).order
    assert order is not None
    return order


def test_a_stateful_sampler_draws_an_earlier_epoch_alike() -> None:
    order = stateful(Stateful)
    assert [list(order(0, epoch)) for epoch in (0, 1, 2, 0, 2, 1)] == [[1], [2], [3], [1], [3], [2]]
    assert list(order(1, 0)) == [1]


class Around(Sampler[int]):
    """A sampler around another one."""

    def __init__(self, data: Any) -> None:
        self.inner = Inner(data)

    def __iter__(self) -> Iterator[int]:
        return iter(self.inner)


class Inner(Stateful, Sampler[int]):
    pass


@pytest.mark.parametrize("kind", [Stateful, Around])
def test_a_sampler_is_the_users_own_after_an_earlier_epoch_was_drawn(kind: Any) -> None:
    sampler = kind(Data())
    order = SamplerOrder(sampler, sampler.data_source if kind is Stateful else None)
    own = sampler if kind is Stateful else sampler.inner
    for epoch in (0, 1, 2, 0):  # as a training that looks first which examples are drawn
        order(0, epoch)
    assert own.asked == 1
    own.asked = 10  # as a module may do in a hook
    assert list(order(0, 1)) == [11]
    assert (sampler if kind is Stateful else sampler.inner) is own


def test_indices_in_a_list_or_a_range_are_an_order() -> None:
    for sampler in ([2, 0, 1], range(3)):
        order = SamplerOrder(sampler)
        assert [list(order(0, epoch)) for epoch in (1, 0)] == [list(sampler)] * 2


class Slotted:
    __slots__ = ("asked",)

    def __init__(self, data: Any) -> None:
        self.asked = 0

    __iter__ = Stateful.__iter__


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Uncopied, "Uncopied cannot be copied .*a lock"),
        (Slotted, "Slotted cannot be copied .*__slots__"),
        (lambda data: iter([1]), "list_iterator cannot be copied .*once"),
    ],
)
def test_a_sampler_whose_state_cannot_be_restored_is_refused_when_it_must_be(
    kind: Any, words: str
) -> None:
    order = stateful(kind)
    assert list(order(0, 0)) == list(order(0, 0)) == [1]
    with pytest.raises(rb.UsageError, match=words):
        order(1, 0)


def test_a_sampler_leaves_the_random_states_as_they_were() -> None:
    order = SamplerOrder(WeightedRandomSampler([1.0] * 5, 5))
    before = torch.get_rng_state()
    assert list(order(0, 0)) == list(SamplerOrder(order._sampler)(0, 0))
    assert torch.equal(before, torch.get_rng_state())
