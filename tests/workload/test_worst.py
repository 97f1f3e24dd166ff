"""The examples of a probe, compared with a brute-force search for the largest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from rightbatch import UsageError
from rightbatch._workload import worst as worst_module
from rightbatch._workload.batch import batch_bytes
from rightbatch._workload.worst import SAMPLE, WorstExamples


class Texts(Dataset[Tensor]):
    """Texts of given lengths; records which were read."""

    def __init__(self, lengths: list[int], seconds_each: float = 0.0) -> None:
        self.lengths = lengths
        self.seconds_each = seconds_each
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Tensor:
        self.seen.append(index)
        time.sleep(self.seconds_each)
        return torch.zeros(self.lengths[index])


class Stream(IterableDataset[Tensor]):
    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.zeros(length) for length in self.lengths)


class CountedStream(Stream):
    def __len__(self) -> int:
        return len(self.lengths)


def examples(data: Any, size: Any = None, seed: int = 0) -> WorstExamples:
    return WorstExamples(data, default_collate, size, seed)


sizes_of = st.lists(st.integers(0, 50), min_size=1, max_size=300)


@given(sizes_of, st.integers(1, 320))
def test_with_a_size_the_batch_is_exactly_the_largest_examples(
    sizes: list[int], batch_size: int
) -> None:
    data = Texts([1] * len(sizes))

    chosen = examples(data, sizes.__getitem__).worst(batch_size)

    assert len(chosen) == batch_size
    rounds, rest = divmod(batch_size, len(sizes))  # more than there are: again from the largest
    expected = sorted(sizes * rounds) + sorted(sizes)[len(sizes) - rest :]
    assert sorted(sizes[index] for index in chosen) == sorted(expected)
    assert rounds or len(set(chosen)) == batch_size, "no example twice while there are others"
    assert not data.seen, "a size spares decoding the examples"


def test_a_plain_list_is_chosen_from_by_its_size_too() -> None:
    assert examples(["a", "bbb", "cc"], [9, 5, 7].__getitem__).worst(2) == [0, 2]


def test_sizes_below_one_are_distinguished() -> None:
    found = examples(Texts([1, 1, 1]), [0.25, 0.75, 0.5].__getitem__)
    assert found.worst(2) == [1, 2]
    assert found.sizes_differ


@given(sizes_of, st.integers(1, 320))
def test_a_small_data_set_is_measured_whole_by_the_bytes_of_its_examples(
    lengths: list[int], batch_size: int
) -> None:
    lengths = lengths[:SAMPLE]
    chosen = examples(Texts(lengths)).worst(batch_size)
    rounds, rest = divmod(batch_size, len(lengths))
    expected = lengths * rounds + sorted(lengths)[len(lengths) - rest :]
    assert sorted(lengths[index] for index in chosen) == sorted(expected)


def test_the_bytes_are_those_of_collated_examples() -> None:
    # Uncollated, the sparse example is the smaller one; what reaches the device is dense.
    data = [{"x": torch.zeros(5)}, {"x": torch.zeros(50).to_sparse()}]

    def collate(items: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([item["x"].to_dense() for item in items])

    assert WorstExamples(data, collate, None, 0).worst(1) == [1]


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no time to look at more examples than the sample."""
    monkeypatch.setattr(worst_module, "SCAN_SECONDS", {True: 0.0, False: 0.0})


@pytest.mark.usefixtures("no_time")
@pytest.mark.parametrize("batch_size", [1, 4, 100, 1000, 1500])
def test_a_sample_represents_the_largest_examples_of_a_large_data_set(batch_size: int) -> None:
    lengths = [(37 * i) % 1000 + 1 for i in range(1000)]
    data = Texts(lengths)
    found = examples(data)

    chosen = found.worst(batch_size)

    assert len(set(data.seen)) == SAMPLE, "a sample, without repetition"
    top = min(-(-SAMPLE * batch_size // 1000), SAMPLE)
    largest = sorted(set(data.seen), key=lambda index: -batch_bytes(data[index]))[:top]
    assert set(chosen) == set(largest[:batch_size])
    assert len(chosen) == batch_size
    repeats = [chosen.count(index) for index in set(chosen)]
    assert max(repeats) - min(repeats) <= 1, "each as often as the others"


@pytest.mark.usefixtures("no_time")
def test_the_sample_depends_on_the_seed() -> None:
    data = Texts(list(range(1, 2001)))
    first, again, other = (examples(data, seed=seed).worst(16) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_single_large_example_is_found_beyond_the_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worst_module, "SCAN_SECONDS", {True: 1e9, False: 1e9})
    lengths = [3] * 4 * SAMPLE
    lengths[-7] = 4
    found = examples(Texts(lengths))
    assert found.worst(1) == [len(lengths) - 7]
    assert found.sizes_differ
    assert found.seen.note() is None


@pytest.mark.usefixtures("no_time")
def test_what_an_answer_rests_on_is_said_where_not_all_examples_were_looked_at() -> None:
    some = examples(Texts(list(range(1, 1001)))).seen.note()
    assert some is not None
    assert some.startswith("rests on 256 of 1,000 examples: the largest were taken; with size=")
    alike = examples(Texts([5] * 1000)).seen.note()
    assert alike is not None
    assert "all of one size" in alike
    stream = examples(Stream([1, 2, 3])).seen.note()
    assert stream == "rests on the first 3 examples of a stream: the largest were taken"
    assert examples(Texts([1] * 1000), lambda index: index).seen.note() is None


def readable(items: list[Any]) -> Any:
    return default_collate([item for item in items if item is not None])


def test_items_that_are_none_are_left_out_of_typical_batches_and_are_no_size() -> None:
    data = [None if index % 3 == 0 else torch.zeros(4) for index in range(12)]
    found = WorstExamples(data, readable, None, 0)
    assert not found.sizes_differ
    assert all(data[index] is not None for index in found.worst(1) + found.typical(8))
    assert sorted(found.worst(12)) == list(range(12)), "an epoch's batch has them"


def test_items_that_the_collate_does_not_take_alone_are_ordered_by_their_own_size() -> None:
    def pairs(items: list[Tensor]) -> Tensor:
        first, second = items
        return torch.stack([first, second])

    data = [torch.zeros(length) for length in (3, 9, 5)]
    assert WorstExamples(data, pairs, None, 0).worst(3) == [1, 2, 0]


def test_memory_that_runs_out_in_the_collate_is_no_size() -> None:
    def collate(items: list[Any]) -> Any:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        WorstExamples([torch.zeros(1)], collate, None, 0)


def test_slow_examples_are_sampled_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst_module, "SAMPLE_SECONDS", 0.1)
    data = Texts(list(range(1, 201)), seconds_each=0.02)
    found = examples(data)
    assert 1 <= len(data.seen) <= 6
    seen_largest = max(data.seen)
    assert found.worst(3)[0] == seen_largest


@given(sizes_of, st.integers(1, 320))
def test_a_typical_batch_is_drawn_without_replacement_while_possible(
    sizes: list[int], batch_size: int
) -> None:
    found = examples(Texts([1] * len(sizes)), sizes.__getitem__)

    chosen = found.typical(batch_size)

    assert len(chosen) == batch_size
    repeats = [chosen.count(index) for index in range(len(sizes))]
    assert max(repeats) - min(repeats) <= 1, "each as often as the others"


def test_typical_batches_come_from_the_whole_data_set() -> None:
    found = examples(Texts(list(range(1, 1001))))
    drawn = [index for _ in range(20) for index in found.typical(100)]
    assert len(set(drawn)) > 800, "also examples that the sample did not hold"
    assert sum(drawn) / len(drawn) == pytest.approx(500, rel=0.1)


def test_an_epoch_has_the_worst_batch_among_others_where_examples_differ() -> None:
    found = examples(Texts(list(range(1, 101))))
    batches = [tuple(batch) for batch in islice(found.sequence(3), 30)]
    assert set(batches[::3]) == {(99, 98, 97)}
    assert len({batch for batch in batches if batch != (99, 98, 97)}) > 15, "no two are alike"


def test_an_epoch_of_equal_examples_is_one_batch_again_and_again() -> None:
    batches = examples(Texts([7] * 6)).sequence(2)
    assert len({tuple(next(batches)) for _ in range(4)}) == 1


def test_an_epoch_ends_with_a_smaller_batch_unless_it_is_dropped_or_is_one_example() -> None:
    found = examples(Texts([7] * 8))
    sizes = [len(batch) for batch in islice(found.sequence(3, drop_last=False), 8)]
    assert sizes == [3, 3, 2, 3] * 2, "a full one follows the smaller one"
    assert [len(batch) for batch in islice(found.sequence(3), 6)] == [3] * 6
    assert [len(batch) for batch in islice(found.sequence(7, drop_last=False), 6)] == [7] * 6
    assert [len(batch) for batch in islice(found.sequence(9, drop_last=False), 6)] == [9] * 6


def test_a_stream_without_a_length_uses_the_largest_sampled_example() -> None:
    found = examples(Stream([1, 2, 9, 4] * 100 + [1000]))
    assert found.total is None
    assert len(found.data) == SAMPLE, "only its beginning was read"
    assert {len(found.data[index]) for index in found.worst(5)} == {9}
    assert {len(found.data[index]) for index in found.typical(200)} == {1, 2, 4, 9}


def test_a_stream_with_a_length_is_sampled_like_any_data() -> None:
    lengths = [3, 1, 4, 1, 5, 9, 2, 6]
    found = examples(CountedStream(lengths), size=[8, 7, 6, 5, 4, 3, 2, 1].__getitem__)
    assert found.total == 8
    # There are no indices that a size could be asked for: it is the bytes that count.
    assert [len(found.data[index]) for index in found.worst(3)] == [9, 6, 5]


@pytest.mark.parametrize("data", [[], Texts([]), Stream([]), CountedStream([])])
def test_empty_data_raises_an_error(data: Any) -> None:
    with pytest.raises(UsageError, match="empty"):
        examples(data)


def test_data_with_indices_but_without_a_length_raises_an_error() -> None:
    class Endless(Dataset[int]):
        def __getitem__(self, index: int) -> int:
            return index

    with pytest.raises(UsageError, match=r"Endless has no len\(\).*IterableDataset"):
        examples(Endless())
