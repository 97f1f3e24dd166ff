"""The largest size with enough updates, against a search through all sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._training.updates import most_useful


@given(st.integers(1, 2_000), st.integers(1, 400))
def test_it_is_the_largest_size_that_leaves_enough_updates(examples: int, epochs: int) -> None:
    """At least 10 of an epoch, and 300 in all, the last batch of an epoch being a smaller one."""

    def updates(size: int) -> int:
        return len(range(0, examples, size))

    enough = [
        size
        for size in range(1, examples + 1)
        if updates(size) >= 10 and updates(size) * epochs >= 300
    ]
    assert most_useful(examples, epochs) == max(enough, default=1)


@given(st.integers(1, 20_000))
def test_without_epochs_two_full_batches_of_a_small_data_set_will_do(examples: int) -> None:
    enough = [
        size
        for size in range(1, examples + 1)
        if 10 * size <= examples or (2 * size <= examples and size <= 1024)
    ]
    assert most_useful(examples, None) == max(enough, default=1)


@pytest.mark.parametrize(
    ("examples", "epochs", "largest"),
    [
        (60_000, 10, 2068),  # 30 updates an epoch: 29 batches of 2,068 leave 28 examples
        (1_000, 300, 111),  # 9 of them leave one example for the tenth
        (50, 1, 1),
        (60_000, None, 6_000),
        (240, None, 120),
        (1, None, 1),
    ],
)
def test_some_of_its_answers(examples: int, epochs: int | None, largest: int) -> None:
    assert most_useful(examples, epochs) == largest
