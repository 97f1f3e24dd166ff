"""The largest length or image at which a batch fits, against trying every one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._predict.largest_value import FINE, MOST, MULTIPLE, NoEffectError, largest_with_room


@given(
    fixed=st.integers(0, 10**10),
    linear=st.integers(0, 10**7),
    square=st.integers(0, 10**4),
    limit=st.integers(10**6, 10**11),
    start=st.integers(1, 5000),
    jump=st.integers(1, 7),
)
def test_nothing_larger_by_a_step_fits(
    fixed: int, linear: int, square: int, limit: int, start: int, jump: int
) -> None:
    def needed(value: int) -> int:
        rounded = -(-value // (jump * MULTIPLE)) * jump * MULTIPLE  # as allocators round
        return fixed + linear * rounded + square * rounded**2 + value

    tried: list[int] = []

    def room(value: int) -> int:
        tried.append(value)
        return limit - needed(value)

    found = largest_with_room(room, start)
    following = found + MULTIPLE * max(int(FINE * found / MULTIPLE), 1)
    assert found % MULTIPLE == 0
    assert found == 0 or needed(found) <= limit
    assert following > MOST or needed(following) > limit
    assert len(tried) == len(set(tried)) <= 40


def test_smooth_needs_take_few_trials() -> None:
    def count(needed: Callable[[int], int], limit: int) -> int:
        tried: list[int] = []

        def room(value: int) -> int:
            tried.append(value)
            return limit - needed(value)

        largest_with_room(room, 512)
        return len(tried)

    assert count(lambda n: 10**9 + 3 * 10**6 * n, 24 * 10**9) <= 5
    assert count(lambda n: 10**9 + 10**6 * n + 400 * n**2, 24 * 10**9) <= 8


def test_what_changes_nothing_is_no_answer() -> None:
    with pytest.raises(NoEffectError):
        largest_with_room(lambda value: 10, 64)


def test_values_that_are_padded_to_one_size_have_an_effect() -> None:
    assert largest_with_room(lambda value: 1000 - -(-value // 256) * 256, 32) == 768
