"""The size to train at, against a search through all sizes."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._choose import UPDATES_IN_ALL, UPDATES_PER_EPOCH, choose


def by_brute_force(largest: int, smallest: int, examples: int, epochs: int) -> int:
    """The largest size with enough updates; the smallest one where no size has enough."""
    enough = [
        size
        for size in range(smallest, largest + 1)
        if ceil(examples / size) >= 10 and ceil(examples / size) * epochs >= 300
    ]
    return max(enough, default=smallest)


sizes = st.integers(1, 4).flatmap(lambda low: st.tuples(st.integers(low, 600), st.just(low)))


@given(sizes, st.integers(1, 20_000), st.integers(1, 400))
def test_it_is_the_largest_size_that_fits_and_makes_enough_updates(
    largest_and_smallest: tuple[int, int], examples: int, epochs: int
) -> None:
    largest, smallest = largest_and_smallest
    choice = choose(largest, smallest, examples, epochs)
    assert choice.batch_size == by_brute_force(largest, smallest, examples, epochs)
    assert choice.updates == ceil(examples / choice.batch_size) * epochs


def test_enough_is_what_the_module_says() -> None:
    assert (UPDATES_PER_EPOCH, UPDATES_IN_ALL) == (10, 300)


def test_the_reason_names_the_largest_where_it_is_taken() -> None:
    choice = choose(largest=16, smallest=1, examples=1000, epochs=10)
    assert choice.batch_size == 16
    assert choice.reason == "16 is the largest that fits: 63 updates per epoch and 630 in all"


def test_the_reason_compares_a_smaller_size_with_the_largest() -> None:
    choice = choose(largest=512, smallest=1, examples=240, epochs=28)
    assert choice.reason == (
        "512 would fit; 23 trains better here, because it makes 11 updates per epoch and 308 in "
        "all where 512 makes 1 and 28 (10 per epoch and 300 in all are wanted)"
    )


@pytest.mark.parametrize(("examples", "smallest"), [(4, 1), (40, 2), (8, 4)])
def test_where_no_size_makes_enough_the_reason_says_how_many_epochs_would(
    examples: int, smallest: int
) -> None:
    choice = choose(largest=64, smallest=smallest, examples=examples, epochs=5)
    assert choice.batch_size == smallest
    wanted = ceil(300 / ceil(examples / smallest))
    assert choice.reason.endswith(f"; for 300, train {wanted} epochs")
    assert ceil(examples / smallest) * wanted >= 300 > ceil(examples / smallest) * (wanted - 1)
