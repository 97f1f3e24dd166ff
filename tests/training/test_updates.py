"""The largest size with enough updates, against a search through all sizes."""

from __future__ import annotations

from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from rightbatch._training.updates import UPDATES_IN_ALL, UPDATES_PER_EPOCH, most_useful


@given(st.integers(1, 5_000), st.integers(1, 400))
def test_it_is_the_largest_size_that_leaves_enough_updates(examples: int, epochs: int) -> None:
    enough = [
        size
        for size in range(1, examples + 1)
        if ceil(examples / size) >= 10 and ceil(examples / size) * epochs >= 300
    ]
    assert most_useful(examples, epochs) == max(enough, default=1)


def test_enough_is_what_the_module_says() -> None:
    assert (UPDATES_PER_EPOCH, UPDATES_IN_ALL) == (10, 300)
