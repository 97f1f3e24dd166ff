"""The rules of the simulated allocator, one by one."""

from __future__ import annotations

import pytest
from reference_allocator import check

from rightbatch._predict.allocator import Allocator, AllocatorOutOfMemory, AllocatorSettings

MIB = 2**20
BASE = 20 * MIB * 1024
"""A first address at which a page of either size begins."""


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (12 * MIB, 12 * MIB),
        (21 * MIB, 22 * MIB),
        (1001 * MIB, 1002 * MIB),
    ],
)
def test_a_new_segment_has_the_size_of_its_class(size: int, segment: int) -> None:
    allocator = Allocator()

    address = allocator.malloc(size)

    assert allocator.segments == {address: segment}
    assert allocator.reserved == allocator.peak_reserved == segment


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        (1, 512),
        (513, 1024),
        (MIB, MIB),
        (MIB + 1, MIB + 512),
        (10 * MIB, 10 * MIB),
        (11 * MIB - 512, 11 * MIB - 512),
        (11 * MIB, 12 * MIB),
        (11 * MIB + MIB // 2, 12 * MIB),
    ],
)
def test_a_large_block_keeps_a_remainder_of_up_to_1_mib(size: int, counts: int) -> None:
    allocator = Allocator()

    address = allocator.malloc(size)

    assert allocator.size_of(address) == allocator.allocated == counts


def test_a_small_block_keeps_no_remainder() -> None:
    allocator = Allocator()
    first = allocator.malloc(1024)
    allocator.malloc(1)
    allocator.free(first)

    assert allocator.malloc(1) == first
    assert allocator.malloc(1) == first + 512
    assert allocator.reserved == 2 * MIB


def test_the_smallest_fitting_block_with_the_lowest_address_is_used() -> None:
    addresses = iter([9 << 30, 3 << 30, 6 << 30, 1 << 30])
    allocator = Allocator(new_segment=lambda size: next(addresses))
    blocks = [allocator.malloc(size * MIB) for size in (14, 14, 14, 30)]
    for address in blocks:
        allocator.free(address)

    taken = [allocator.malloc(14 * MIB) for _ in range(4)]

    assert taken == [3 << 30, 6 << 30, 9 << 30, 1 << 30]
    assert allocator.size_of(taken[-1]) == 14 * MIB


def test_small_and_large_requests_share_no_segment() -> None:
    allocator = Allocator()
    large = allocator.malloc(12 * MIB)
    allocator.free(large)

    small = allocator.malloc(MIB)

    assert set(allocator.segments) == {large, small}
    assert allocator.malloc(12 * MIB) == large


def test_freed_neighbours_are_merged_on_both_sides() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)):
        allocator = Allocator()
        blocks = [allocator.malloc(6 * MIB) for _ in range(3)]
        assert allocator.reserved == 20 * MIB
        for index in order:
            allocator.free(blocks[index])

        assert list(allocator.blocks()) == [(blocks[0], 20 * MIB, True)]


def test_neighbouring_segments_are_not_merged() -> None:
    allocator = Allocator()
    left, right = allocator.malloc(20 * MIB), allocator.malloc(20 * MIB)
    assert right == left + 20 * MIB

    allocator.free(left)
    allocator.free(right)

    assert list(allocator.blocks()) == [(left, 20 * MIB, True), (right, 20 * MIB, True)]


def test_cached_segments_stay_reserved_until_the_cache_is_emptied() -> None:
    allocator = Allocator()
    whole, part, kept = (allocator.malloc(size * MIB) for size in (30, 4, 4))
    allocator.free(whole)
    allocator.free(part)
    assert allocator.reserved == 50 * MIB

    allocator.empty_cache()

    assert allocator.segments == {part: 20 * MIB}
    assert (allocator.reserved, allocator.peak_reserved) == (20 * MIB, 50 * MIB)
    assert allocator.size_of(kept) == 4 * MIB


def test_the_cache_is_emptied_and_the_request_retried_before_out_of_memory() -> None:
    allocator = Allocator(AllocatorSettings(capacity=50 * MIB))
    allocator.free(allocator.malloc(30 * MIB))

    address = allocator.malloc(40 * MIB)

    assert allocator.segments == {address: 40 * MIB}
    assert allocator.retries == 1


def test_a_failed_segment_request_is_retried_after_emptying_the_cache() -> None:
    answers: list[int | None] = [1 << 32, None, 2 << 32, None, None]
    asked: list[int] = []

    def device(size: int) -> int | None:
        asked.append(size)
        return answers.pop(0)

    allocator = Allocator(new_segment=device)
    allocator.free(allocator.malloc(30 * MIB))

    assert allocator.malloc(40 * MIB) == 2 << 32
    with pytest.raises(AllocatorOutOfMemory):
        allocator.malloc(1)
    assert asked == [30 * MIB, 40 * MIB, 40 * MIB, 2 * MIB, 2 * MIB]
    assert allocator.retries == 2


def test_out_of_memory_has_the_requested_and_the_held_bytes() -> None:
    allocator = Allocator(AllocatorSettings(capacity=40 * MIB))
    kept = allocator.malloc(25 * MIB)
    allocator.free(allocator.malloc(14 * MIB))
    assert allocator.size_of(kept) == 26 * MIB

    with pytest.raises(AllocatorOutOfMemory) as caught:
        allocator.malloc(20 * MIB - 1)

    figures = (20 * MIB, 26 * MIB, 26 * MIB)
    assert (caught.value.size, caught.value.reserved, caught.value.allocated) == figures
    assert all(str(figure) in str(caught.value) for figure in figures)
    assert allocator.malloc(14 * MIB), "what does fit is still served"


def test_requests_are_rounded_up_to_a_division_of_a_power_of_two() -> None:
    allocator = Allocator(AllocatorSettings(roundup_power2_divisions=4))

    address = allocator.malloc(1200 * MIB)

    assert allocator.segments == {address: 1280 * MIB}
    assert allocator.size_of(allocator.malloc(MIB // 2 + 1)) == 5 * MIB // 8
    assert allocator.size_of(allocator.malloc(2048)) == 2048
    assert allocator.size_of(allocator.malloc(2049)) == 2560


def test_rounding_up_may_move_a_request_to_the_large_pool_or_leave_it_in_the_small_one() -> None:
    allocator = Allocator(AllocatorSettings(roundup_power2_divisions=4))

    small, large = allocator.malloc(MIB - 1), allocator.malloc(MIB + 1)

    assert allocator.segments == {small: 2 * MIB, large: 20 * MIB}


def max_split(capacity: int | None = None) -> Allocator:
    return Allocator(AllocatorSettings(capacity and capacity * MIB, max_split_size=40 * MIB))


def test_a_request_below_max_split_size_uses_no_block_beyond_it() -> None:
    allocator = max_split()
    oversize = allocator.malloc(40 * MIB)
    allocator.free(oversize)

    other = allocator.malloc(40 * MIB - 512)

    assert other != oversize
    assert allocator.reserved == 80 * MIB


def test_a_request_beyond_max_split_size_wastes_less_than_20_mib_of_a_block() -> None:
    allocator = max_split()
    larger, smaller = allocator.malloc(60 * MIB), allocator.malloc(58 * MIB)
    allocator.free(larger)

    assert allocator.malloc(40 * MIB) not in (larger, smaller)

    allocator.free(smaller)
    assert allocator.malloc(40 * MIB) == smaller
    assert allocator.malloc(40 * MIB + 1) == larger
    assert allocator.size_of(smaller) == 58 * MIB
    assert allocator.size_of(larger) == 60 * MIB


def test_a_block_below_max_split_size_is_split() -> None:
    allocator = max_split()
    block = allocator.malloc(38 * MIB)
    allocator.free(block)

    assert [allocator.malloc(10 * MIB), allocator.malloc(10 * MIB)] == [block, block + 10 * MIB]


def test_one_block_beyond_max_split_size_is_released_before_the_whole_cache() -> None:
    allocator = max_split(capacity=100)
    cached, oversize = allocator.malloc(20 * MIB), allocator.malloc(60 * MIB)
    allocator.free(cached)
    allocator.free(oversize)

    address = allocator.malloc(40 * MIB)

    assert allocator.segments == {cached: 20 * MIB, address: 40 * MIB}
    assert allocator.retries == 0


def test_blocks_beyond_max_split_size_are_released_largest_first_until_it_fits() -> None:
    allocator = max_split(capacity=150)
    cached = [allocator.malloc(size * MIB) for size in (40, 46, 44)]
    for address in cached:
        allocator.free(address)

    address = allocator.malloc(90 * MIB)

    assert allocator.segments == {cached[0]: 40 * MIB, address: 90 * MIB}
    assert allocator.retries == 0


def test_garbage_collection_releases_the_old_whole_segments_first() -> None:
    settings = AllocatorSettings(capacity=100 * MIB, garbage_collection_threshold=0.5)
    allocator = Allocator(settings)
    old, young = allocator.malloc(20 * MIB), allocator.malloc(20 * MIB)
    allocator.free(old)
    kept = allocator.malloc(22 * MIB)
    assert set(allocator.segments) == {old, young, kept}, "the threshold was not reached"
    allocator.free(young)

    new = allocator.malloc(24 * MIB)

    assert set(allocator.segments) == {young, kept, new}
    assert allocator.retries == 0


def test_garbage_collection_keeps_small_and_partly_used_segments() -> None:
    settings = AllocatorSettings(capacity=100 * MIB, garbage_collection_threshold=0.1)
    allocator = Allocator(settings)
    small, part, used = (allocator.malloc(size) for size in (512, 5 * MIB, 5 * MIB))
    allocator.free(small)
    allocator.free(part)

    large = allocator.malloc(30 * MIB)

    assert allocator.segments == {small: 2 * MIB, part: 20 * MIB, large: 30 * MIB}
    assert allocator.size_of(used) == 5 * MIB


def test_a_segment_ages_by_the_searches_of_all_streams() -> None:
    settings = AllocatorSettings(capacity=100 * MIB, garbage_collection_threshold=0.3)
    allocator = Allocator(settings)
    old, young = allocator.malloc(20 * MIB, stream=1), allocator.malloc(20 * MIB)
    allocator.free(old)
    for _ in range(3):
        allocator.free(young)
        assert allocator.malloc(20 * MIB) == young
    allocator.free(young)

    new = allocator.malloc(40 * MIB)

    assert set(allocator.segments) == {young, new}


def test_streams_share_no_blocks() -> None:
    allocator = Allocator()
    block = allocator.malloc(12 * MIB, stream=1)
    allocator.free(block)

    assert allocator.malloc(12 * MIB, stream=0) != block
    assert allocator.malloc(12 * MIB, stream=2) != block
    assert allocator.malloc(12 * MIB, stream=1) == block


def test_a_block_in_use_by_other_streams_is_kept_until_all_are_synchronized() -> None:
    allocator = Allocator()
    block = allocator.malloc(12 * MIB)
    allocator.record_stream(block, 1)
    allocator.record_stream(block, 2)
    allocator.synchronize(1)  # before it was freed: waits for nothing
    allocator.free(block)
    assert allocator.allocated == 0

    for stream in (1, 2):
        assert list(allocator.blocks()) == [(block, 12 * MIB, False)]
        allocator.synchronize(stream)

    assert list(allocator.blocks()) == [(block, 12 * MIB, True)]
    assert allocator.malloc(12 * MIB) == block


def test_a_block_used_on_its_own_stream_is_free_at_once() -> None:
    allocator = Allocator()
    block = allocator.malloc(12 * MIB, stream=1)
    allocator.record_stream(block, 1)

    allocator.free(block)

    assert allocator.malloc(12 * MIB, stream=1) == block


def test_blocks_of_other_streams_are_waited_for_before_out_of_memory() -> None:
    allocator = Allocator(AllocatorSettings(capacity=30 * MIB))
    block = allocator.malloc(20 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)

    address = allocator.malloc(30 * MIB)

    assert allocator.segments == {address: 30 * MIB}


def test_emptying_the_cache_waits_for_blocks_of_other_streams() -> None:
    allocator = Allocator()
    block = allocator.malloc(20 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)

    allocator.empty_cache()

    assert allocator.reserved == 0


def expandable(capacity: int | None = None, max_split_size: int | None = None) -> Allocator:
    settings = AllocatorSettings(capacity, max_split_size, expandable_segments=True)
    return Allocator(settings, first_address=BASE)


def test_an_expandable_segment_grows_by_the_pages_that_are_missing() -> None:
    allocator = expandable()
    reserved = []
    addresses = []
    for size in (15, 15, 10, 41):
        addresses.append(allocator.malloc(size * MIB))
        reserved.append(allocator.reserved // MIB)

    assert addresses == [BASE + offset * MIB for offset in (0, 15, 30, 40)]
    assert reserved == [20, 40, 40, 100]


def test_small_requests_have_an_expandable_segment_of_their_own_with_smaller_pages() -> None:
    allocator = expandable()
    large = allocator.malloc(2 * MIB)

    first, second, third = (allocator.malloc(MIB) for _ in range(3))

    assert (second, third) == (first + MIB, first + 2 * MIB)
    assert first > large + 2**40
    assert allocator.reserved == 20 * MIB + 4 * MIB


def test_expandable_segments_split_off_any_remainder() -> None:
    allocator = expandable()

    address = allocator.malloc(20 * MIB - 512)

    assert allocator.size_of(address) == 20 * MIB - 512
    assert allocator.malloc(2 * MIB) == address + 20 * MIB - 512


def test_an_expandable_block_counts_as_what_it_can_grow_to() -> None:
    allocator = expandable()
    hole = allocator.malloc(12 * MIB)
    allocator.malloc(20 * MIB)
    allocator.free(hole)
    assert [size // MIB for _, size, is_free in allocator.blocks() if is_free] == [12, 8]

    # The 8 MiB at the end would fit better, but can grow.
    assert allocator.malloc(6 * MIB) == hole


def test_unmapped_pages_are_mapped_again_first() -> None:
    allocator = expandable()
    _, middle, last = (allocator.malloc(20 * MIB) for _ in range(3))
    allocator.free(middle)
    allocator.empty_cache()
    assert allocator.reserved == 40 * MIB

    assert allocator.malloc(25 * MIB) == last + 20 * MIB, "the gap is too small"
    assert allocator.malloc(20 * MIB) == middle
    assert allocator.reserved == 100 * MIB


def test_partly_used_pages_are_not_unmapped() -> None:
    allocator = expandable()
    first, second = allocator.malloc(30 * MIB), allocator.malloc(30 * MIB)
    allocator.free(first)

    allocator.empty_cache()

    assert allocator.reserved == 40 * MIB
    assert list(allocator.blocks()) == [
        (BASE + 20 * MIB, 10 * MIB, True),
        (second, 30 * MIB, False),
    ]


def test_expandable_segments_unmap_pages_before_out_of_memory() -> None:
    allocator = expandable(capacity=60 * MIB)
    allocator.free(allocator.malloc(40 * MIB))

    address = allocator.malloc(60 * MIB)

    assert allocator.size_of(address) == allocator.reserved == 60 * MIB
    assert allocator.retries == 1


def test_pages_are_counted_from_the_start_of_the_range() -> None:
    allocator = Allocator(AllocatorSettings(expandable_segments=True), first_address=1 << 32)
    allocator.free(allocator.malloc(20 * MIB))

    allocator.empty_cache()

    assert allocator.reserved == 0


def test_an_expandable_block_beyond_max_split_size_is_not_released_as_a_segment() -> None:
    allocator = expandable(capacity=60 * MIB, max_split_size=21 * MIB)
    allocator.free(allocator.malloc(40 * MIB))

    address = allocator.malloc(50 * MIB)

    assert allocator.size_of(address) == 50 * MIB
    assert allocator.reserved == 60 * MIB


# What existed before


def test_an_adopted_segment_has_free_blocks_between_the_live_ones() -> None:
    allocator = Allocator()
    start = 1 << 40
    live = [(start + 12 * MIB, 4 * MIB), (start, 2 * MIB)]

    allocator.adopt(start, 20 * MIB, live, False)

    assert list(allocator.blocks()) == [
        (start, 2 * MIB, False),
        (start + 2 * MIB, 10 * MIB, True),
        (start + 12 * MIB, 4 * MIB, False),
        (start + 16 * MIB, 4 * MIB, True),
    ]
    check(allocator, dict(live))
    assert allocator.malloc(3 * MIB) == start + 16 * MIB
    for address in (start + 16 * MIB, *dict(live)):
        allocator.free(address)
    assert list(allocator.blocks()) == [(start, 20 * MIB, True)]


def test_only_a_segment_that_is_free_can_be_released() -> None:
    allocator = Allocator()
    block = allocator.malloc(12 * MIB)

    assert not allocator.release_segment(block)
    assert not allocator.release_segment(block + 512)
    allocator.free(block)
    assert allocator.release_segment(block)
    assert not allocator.release_segment(block)
    assert (allocator.reserved, allocator.segments) == (0, {})
