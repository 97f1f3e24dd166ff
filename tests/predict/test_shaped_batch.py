"""Batches that are shapes only, against real batches of the same size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import Dataset, TensorDataset, default_collate

import rightbatch as rb
from rightbatch import Workload
from rightbatch._predict import follow
from rightbatch._predict.follow import Follower
from rightbatch._predict.follow_process import Followed
from rightbatch._predict.followed_step import FollowedStep
from rightbatch._predict.shaped_batch import shaped_batch
from rightbatch._predict.variant import Variant

LENGTHS = sorted([9, 7, 7, 6, 5, 5, 4, 3, 2, 1] * 40, reverse=True)
"""Of texts, the longest first, as the largest examples are ordered."""
SIZE = 240


def images(chosen: Any) -> Any:
    return default_collate([(torch.zeros(3, 8, 6), i % 10) for i in chosen])


def channels_last(chosen: Any) -> Any:
    x, y = images(chosen)
    return x.contiguous(memory_format=torch.channels_last), y


def padded(chosen: Any) -> Any:
    texts = pad_sequence([torch.ones(LENGTHS[i]) for i in chosen], batch_first=True)
    return {"text": texts, "mask": texts > 0, "scale": torch.tensor(2.0), "name": "texts"}


def time_first(chosen: Any) -> Any:
    return pad_sequence([torch.ones(LENGTHS[i], 4) for i in chosen])


def two_views(chosen: Any) -> Any:
    return torch.zeros(2 * len(chosen), 5, dtype=torch.float16)


def concatenated(chosen: Any) -> Any:
    return torch.cat([torch.zeros(LENGTHS[i], 4) for i in chosen])


def padded_to_8(chosen: Any) -> Any:
    return torch.zeros(-(-len(chosen) // 8) * 8, 4)


def packed(chosen: Any) -> Any:
    """Rows of 4,096 tokens, of texts of 128 tokens."""
    return {"tokens": torch.zeros(-(-128 * len(chosen) // 4096), 4096), "n": torch.tensor(1)}


def padded_to_64(chosen: Any) -> Any:
    return {"x": torch.zeros(-(-len(chosen) // 64) * 64, 4), "y": torch.zeros(len(chosen))}


def short(chosen: Any) -> Any:
    """Rows of 4,096 tokens, of texts of 16 tokens."""
    return {"tokens": torch.zeros(-(-16 * len(chosen) // 4096), 4096), "n": torch.tensor(1)}


def listed(chosen: Any) -> Any:
    """Rows of 4,096 tokens, with a list that has an element per text."""
    return packed(chosen) | {"lengths": [128 for _ in chosen]}


def shaped(collate: Callable[[Any], Any], size: int = SIZE, *, sizes_differ: bool = False) -> Any:
    return shaped_batch(collate, range(size), FakeTensorMode(), sizes_differ=sizes_differ)


@pytest.mark.parametrize(
    ("collate", "sizes_differ"),
    [
        (images, False),
        (channels_last, False),
        (padded, True),
        (time_first, True),
        (two_views, False),
    ],
)
def test_shapes_types_and_strides_are_those_of_a_real_batch(
    collate: Callable[[Any], Any], sizes_differ: bool
) -> None:
    found, real = shaped(collate, sizes_differ=sizes_differ), collate(range(SIZE))
    leaves = torch.utils._pytree.tree_leaves
    assert torch.utils._pytree.tree_structure(found) == torch.utils._pytree.tree_structure(real)
    for one, other in zip(leaves(found), leaves(real), strict=True):
        if isinstance(other, Tensor):
            assert (one.shape, one.stride(), one.dtype) == (
                other.shape,
                other.stride(),
                other.dtype,
            )
        else:
            assert one == other


@pytest.mark.parametrize(
    "collate",
    [
        concatenated,
        lambda chosen: [torch.zeros(3, 8, 8) for _ in chosen],
        lambda chosen: {"x": torch.zeros(len(chosen), 4), "names": ["text"] * len(chosen)},
        lambda chosen: {"x": torch.zeros(len(chosen), 4), "examples": len(chosen)},
        lambda chosen: pack_sequence([torch.ones(LENGTHS[i]) for i in chosen]),
        lambda chosen: torch.zeros(len(chosen) ** 2),
        lambda chosen: torch.zeros(1, 4).expand(len(chosen), 4),
        lambda chosen: torch.zeros(1, 16),
        padded_to_8,
        packed,
    ],
)
def test_a_batch_that_is_not_linear_in_its_examples_is_collated(
    collate: Callable[[Any], Any],
) -> None:
    assert shaped(collate, sizes_differ=True) is None


class Texts(Dataset[Tensor]):
    def __init__(self) -> None:
        self.loaded: set[int] = set()

    def __len__(self) -> int:
        return len(LENGTHS)

    def __getitem__(self, index: int) -> Tensor:
        self.loaded.add(index)
        return torch.ones(LENGTHS[index], 4)


def pairs(data: Texts) -> Callable[[], Workload]:
    """A step whose memory is quadratic in the batch size: every pair of examples is compared."""

    def factory() -> Workload:
        model = nn.Linear(4, 4)

        def loss(model: nn.Module, batch: Tensor) -> Tensor:
            features = model(batch).amax(1)
            return (features @ features.T).softmax(1).sum()

        return Workload(
            model,
            loss,
            torch.optim.SGD(model.parameters(), lr=0.1),
            data,
            collate=lambda items: pad_sequence(items, batch_first=True),
            size=LENGTHS.__getitem__,
        )

    return factory


def test_the_trace_is_that_of_a_real_batch_and_few_examples_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Texts()
    (found,) = Follower(pairs(data)).traces([SIZE], Variant(capability=8.0))
    assert len(data.loaded) <= 33
    monkeypatch.setattr(follow, "shaped_batch", lambda *_, **__: None)
    (collated,) = Follower(pairs(Texts())).traces([SIZE], Variant(capability=8.0))
    assert found == collated


def test_a_large_batch_whose_values_are_read_is_collated(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = torch.arange(1, 65)

    def factory() -> Workload:
        model = nn.Linear(4, 4)

        def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
            x, ends = batch
            longest = int(ends.max())  # a value is read
            mask = torch.arange(longest) < ends[:, None]
            return model(x)[:, :longest][mask].exp().sum()

        data = TensorDataset(torch.ones(64, 64, 4), lengths)
        return Workload(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), data)

    follower = Follower(factory)
    traces = follower.traces([4, 32], Variant(capability=8.0))
    assert follower.how == "fake" and not follower.notes
    monkeypatch.setattr(follow, "shaped_batch", lambda *_, **__: None)
    assert Follower(factory).traces([4, 32], Variant(capability=8.0)) == traces


@pytest.mark.parametrize("collate", [padded_to_8, packed, padded_to_64, short, listed])
def test_a_batch_that_grows_in_steps_is_followed_at_every_size(
    collate: Callable[[Any], Any],
) -> None:
    """Batches of 2, 4 and 7 examples have the same tensors; a line through them is constant."""

    def factory() -> Workload:
        x = collate(range(2))
        x = next(iter(x.values())) if isinstance(x, dict) else x
        model = nn.Linear(x.shape[1], 512)

        def loss(model: nn.Module, batch: Any) -> Tensor:
            x = next(iter(batch.values())) if isinstance(batch, dict) else batch
            return model(x).exp().sum()

        data = list(torch.zeros(4096, 1))
        return Workload(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), data, collate)

    found = rb.predict(factory, batch=1024, memory="1GiB")
    follower = Follower(factory)
    follower.use_real_tensors(RuntimeError("for comparison"))
    (real,) = follower.traces([1024], Variant(capability=8.0))
    assert found.trace.peak_bytes == real.peak_bytes
    assert any("followed separately" in note for note in found.notes)


def test_the_largest_batch_that_grows_in_steps_is_approached_from_below() -> None:
    """All examples at once would be far more than the memory that is asked for."""
    collated: list[int] = []

    def collate(items: list[Tensor]) -> Tensor:
        collated.append(len(items))
        return torch.zeros(-(-len(items) // 64) * 64, 1024)

    def factory() -> Workload:
        model = nn.Linear(1024, 8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = list(torch.zeros(2**17, 1))
        return Workload(model, lambda model, x: model(x).sum(), optimizer, data, collate)

    follower = Follower(factory)

    class Process:
        def follow(self, tasks: Any) -> Followed:
            asked = [(task["batch_size"], Variant(capability=8.0)) for task in tasks]
            found = []
            for size, variant in asked:
                trace = follower.trace(size, variant).to_dict()
                found.append({"outcome": "ok", "trace": trace, "batch_grows_in_steps": True})
            return Followed(found, examples=follower.examples)

    largest = FollowedStep(Process()).largest(600 * 2**20, 8.0)  # type: ignore[arg-type]
    assert largest is not None and largest % 64 == 0
    assert max(collated) <= 4 * largest
