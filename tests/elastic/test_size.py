"""The micro-batch's policy, and the search for the size to begin with, without any tensor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rightbatch._elastic.size_policy import (
    FIRST_WAIT,
    PATIENCE,
    PRESSED,
    MicroBatchSize,
    largest,
    next_trial,
)


def well(micro: MicroBatchSize, steps: int) -> list[str]:
    return [micro.went_well(is_short=False) for _ in range(steps)]


def test_the_first_failure_tries_the_same_size_again_and_the_second_halves_it() -> None:
    micro = MicroBatchSize(32, 32)
    assert (micro.failed(), micro.size) == ("again", 32)
    assert (micro.failed(), micro.size) == ("smaller", 16)
    assert (micro.failed(), micro.size) == ("smaller", 8)


def test_the_cache_is_worth_emptying_again_after_steps_that_went_well() -> None:
    micro = MicroBatchSize(32, 32)
    micro.failed()
    well(micro, PATIENCE - 1)
    assert (micro.failed(), micro.size) == ("smaller", 16)
    well(micro, PATIENCE)
    assert micro.failed() == "again"


def test_at_one_example_it_gives_up_only_when_that_fails_twice_in_a_row() -> None:
    micro = MicroBatchSize(1, 1)
    assert micro.failed() == "again"
    well(micro, 1)
    assert micro.failed() == "again"
    assert micro.failed() == "none"


def test_it_grows_back_and_waits_longer_where_that_fails() -> None:
    micro = MicroBatchSize(32, 32)
    micro.failed()
    micro.failed()
    wait = micro.wait
    answers = well(micro, wait)
    assert answers[-1] == "larger"
    assert micro.size == 32
    assert (micro.failed(), micro.size) == ("smaller", 16)
    assert micro.wait == 2 * wait
    assert "larger" not in well(micro, 2 * wait - 1)


def test_a_trial_that_goes_well_is_kept_and_never_exceeds_what_was_asked() -> None:
    micro = MicroBatchSize(10, 24)
    well(micro, FIRST_WAIT)
    assert micro.size == 20
    well(micro, FIRST_WAIT)
    assert micro.size == 24
    assert set(well(micro, 3 * FIRST_WAIT)) == {"none"}


def test_a_batch_that_is_one_part_makes_nothing_grow() -> None:
    micro = MicroBatchSize(10, 24)
    for _ in range(3 * FIRST_WAIT):
        assert micro.went_well(is_short=True) == "none"
    assert micro.size == 10


def test_an_allocator_that_searches_in_consecutive_steps_shrinks_it_before_an_error() -> None:
    micro = MicroBatchSize(32, 32)
    assert micro.went_well(is_short=False, was_searched=True) == "none"
    assert micro.went_well(is_short=False, was_searched=False) == "none"
    for _ in range(PRESSED - 1):
        assert micro.went_well(is_short=False, was_searched=True) == "none"
    assert micro.went_well(is_short=False, was_searched=True) == "smaller"
    assert micro.size == 16


@given(st.integers(1, 64), st.lists(st.sampled_from(["well", "searched", "failed"]), max_size=300))
def test_it_stays_between_one_and_what_was_asked_and_fails_for_good_only_at_one(
    most: int, happenings: list[str]
) -> None:
    micro = MicroBatchSize(most, most)
    for happening in happenings:
        if happening == "failed":
            before = micro.size
            assert micro.failed() != "none" or before == 1
        else:
            micro.went_well(is_short=False, was_searched=happening == "searched")
        assert 1 <= micro.size <= most


@given(st.floats(1, 500), st.floats(0, 3000), st.floats(10, 1e5), st.integers(1, 4096))
def test_the_size_found_is_within_the_room_and_near_the_largest_there_is(
    slope: float, intercept: float, room: float, whole: int
) -> None:
    def need(size: int) -> int:
        return int(2**20 * (intercept + slope * size))

    measured: list[tuple[int, int]] = []
    there_is = int(2**20 * room)
    while size := next_trial(measured, there_is, whole, 1):
        measured.append((size, need(size)))
        assert len(measured) <= 2 or need(size) <= there_is / 2 + 2**12
    found = largest(measured, there_is, whole)
    assert found == 1 or need(found) <= there_is + 2**12
    if need(1) <= there_is / 2:
        assert need(min(found + 2, whole)) > there_is or found == whole
