"""A plan's reason is consistent with the numbers that it stands beside."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch._tune.decision import Decision, Expected
from rightbatch._tune.plan import Branch
from rightbatch._tune.reason import reason


def expected(size: int, time: float) -> Expected:
    return Expected(size, size, 1, 100.0, 99.0, 101.0, 0.5, time, time, time)


def decision(times: dict[int, float], chosen: int, most: int | None = None) -> Decision:
    sizes = tuple(expected(size, time) for size, time in times.items())
    return Decision(sizes, chosen, (chosen,), 1.0, 40.0, most)


def largest(size: int) -> Any:
    return SimpleNamespace(batch_size=size)


def test_the_default_and_the_largest_are_compared_with_the_chosen_size() -> None:
    made = decision({4: 1.0, 16: 1.3, 256: 9.49}, 4)
    assert reason(made, largest(256), "time", ()) == (
        "expected to be the size that reaches the target soonest; 16, the default, would take 1.3 "
        "times as long; 256, the largest tried, would take 9.5 times as long"
    )


def test_a_faster_size_that_leaves_too_few_updates_is_named_as_such() -> None:
    made = decision({1: 1.0, 8: 0.28}, 1, most=2)
    assert reason(made, largest(8), "time", ()) == (
        "expected to be the size that reaches the target soonest of those up to 2, which leave "
        "enough updates; 8, the largest tried, would take 0.28 times as long but leaves too few "
        "updates"
    )


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ("cost", "costs least; 16, the default, would cost 2 times as much"),
        ("energy", "takes least energy; 16, the default, would take 2 times the energy"),
    ],
)
def test_other_objectives_have_their_own_words(objective: str, said: str) -> None:
    assert said in reason(decision({8: 1.0, 16: 2.0}, 8), largest(8), objective, ())


def test_branches_are_told_with_the_largest_size_that_is_not_worse() -> None:
    branches = tuple(
        Branch(size, loss, 1.0, 512)
        for size, loss in ((8, 0.5), (16, 0.505), (32, 0.6), (64, float("nan")))
    )
    told = reason(decision({8: 1.0, 16: 1.1}, 8), largest(8), "time", branches)
    assert told.endswith(
        "Branches of 512 examples ended at a loss of 0.5 at 8, 0.505 at 16, 0.6 at 32: 16 is the "
        "largest size that is not worse"
    )


@given(
    st.dictionaries(st.integers(1, 512), st.floats(0.01, 50.0), min_size=1, max_size=8),
    st.none() | st.integers(1, 512),
)
def test_a_size_that_would_be_faster_is_never_named_without_the_reason_against_it(
    times: dict[int, float], most: int | None
) -> None:
    allowed = {size: time for size, time in times.items() if most is None or size <= most}
    if not allowed:
        return
    chosen = min(allowed, key=lambda size: allowed[size])
    relative = {size: time / times[chosen] for size, time in times.items()}
    told = reason(decision(relative, chosen, most), largest(max(times)), "time", ())
    for part in told.split("; ")[1:]:
        found = re.fullmatch(r"(\d+), .*, would take (\S+) times as long( but .*)?", part)
        assert found is not None, part
        is_faster = relative[int(found[1])] < 1
        assert is_faster == (found[3] is not None)
        assert float(found[2]) == pytest.approx(relative[int(found[1])], rel=0.06)
