"""The micro-batch size policy and the search for the initial size, without tensors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rightbatch._elastic.size_policy import (
    FIRST_WAIT,
    MAX_RETRIED_STEPS,
    PATIENCE,
    MicroBatchSize,
    largest,
    next_trial,
)


def succeed(micro: MicroBatchSize, steps: int) -> list[str]:
    return [micro.on_success(is_single_part=False) for _ in range(steps)]


def test_the_first_failure_tries_the_same_size_again_and_the_second_halves_it() -> None:
    micro = MicroBatchSize(32, 32)
    assert (micro.on_failure(), micro.size) == ("again", 32)
    assert (micro.on_failure(), micro.size) == ("smaller", 16)
    assert (micro.on_failure(), micro.size) == ("smaller", 8)


def test_halves_are_multiples_of_the_number_that_the_loss_takes() -> None:
    micro = MicroBatchSize(30, 30, least=6, multiple=6)
    micro.on_failure()
    assert [(micro.on_failure(), micro.size) for _ in range(3)] == [
        ("smaller", 12),
        ("smaller", 6),
        ("none", 6),
    ]


def test_the_same_size_is_tried_again_after_enough_successful_steps() -> None:
    micro = MicroBatchSize(32, 32)
    micro.on_failure()
    succeed(micro, PATIENCE - 1)
    assert (micro.on_failure(), micro.size) == ("smaller", 16)
    succeed(micro, PATIENCE)
    assert micro.on_failure() == "again"


def test_at_one_example_it_gives_up_after_two_consecutive_failures() -> None:
    micro = MicroBatchSize(1, 1)
    assert micro.on_failure() == "again"
    succeed(micro, 1)
    assert micro.on_failure() == "again"
    assert micro.on_failure() == "none"


def test_it_grows_back_and_waits_longer_after_a_failed_trial() -> None:
    micro = MicroBatchSize(32, 32)
    micro.on_failure()
    micro.on_failure()
    wait = micro.wait
    decisions = succeed(micro, wait)
    assert decisions[-1] == "larger"
    assert micro.size == 32
    assert (micro.on_failure(), micro.size) == ("smaller", 16)
    assert micro.wait == 2 * wait
    assert "larger" not in succeed(micro, 2 * wait - 1)


def test_a_successful_trial_is_kept_and_never_exceeds_the_given_size() -> None:
    micro = MicroBatchSize(10, 24)
    succeed(micro, FIRST_WAIT)
    assert micro.size == 20
    succeed(micro, FIRST_WAIT)
    assert micro.size == 24
    assert set(succeed(micro, 3 * FIRST_WAIT)) == {"none"}


def test_a_batch_of_a_single_part_does_not_grow_the_size() -> None:
    micro = MicroBatchSize(10, 24)
    for _ in range(3 * FIRST_WAIT):
        assert micro.on_success(is_single_part=True) == "none"
    assert micro.size == 10


def test_retries_of_the_allocator_in_consecutive_steps_shrink_the_size_before_an_error() -> None:
    micro = MicroBatchSize(32, 32)
    assert micro.on_success(is_single_part=False, allocator_retried=True) == "none"
    assert micro.on_success(is_single_part=False, allocator_retried=False) == "none"
    for _ in range(MAX_RETRIED_STEPS - 1):
        assert micro.on_success(is_single_part=False, allocator_retried=True) == "none"
    assert micro.on_success(is_single_part=False, allocator_retried=True) == "smaller"
    assert micro.size == 16


@given(
    st.integers(1, 64), st.lists(st.sampled_from(["success", "retried", "failed"]), max_size=300)
)
def test_the_size_stays_between_one_and_the_given_size_and_gives_up_only_at_one(
    most: int, outcomes: list[str]
) -> None:
    micro = MicroBatchSize(most, most)
    for outcome in outcomes:
        if outcome == "failed":
            before = micro.size
            assert micro.on_failure() != "none" or before == 1
        else:
            micro.on_success(is_single_part=False, allocator_retried=outcome == "retried")
        assert 1 <= micro.size <= most


@given(st.floats(1, 500), st.floats(0, 3000), st.floats(10, 1e5), st.integers(1, 4096))
def test_the_size_found_fits_and_is_near_the_largest_that_fits(
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
