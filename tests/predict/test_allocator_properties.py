"""The allocator in random runs: compared with the reference, and invariants."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference_allocator import NoRoom, Reference, check, shuffled_driver

from rightbatch._predict.allocator import Allocator, AllocatorOutOfMemory, AllocatorSettings

MIB = 2**20
BASE = 20 * MIB * 1024
"""A first address at which a page of either size begins."""


sizes = st.one_of(
    st.integers(1, 1100),
    st.integers(1, MIB),
    st.builds(
        int.__add__,
        st.sampled_from([MIB, 2 * MIB, 9 * MIB, 10 * MIB, 11 * MIB, 12 * MIB, 20 * MIB, 30 * MIB]),
        st.integers(-1100, 1100),
    ),
    st.integers(MIB + 1, 10 * MIB),
    st.integers(10 * MIB, 70 * MIB),
)
Step = tuple[str, int, int, int]
"""The operation, a size, the index of a live block, a stream."""


def steps_of(kinds: str, streams: int = 1) -> st.SearchStrategy[list[Step]]:
    step = st.tuples(
        st.sampled_from(kinds), sizes, st.integers(0, 2**16), st.integers(0, streams - 1)
    )
    return st.lists(step, min_size=15, max_size=70)


def random_steps(seed: int, count: int) -> list[Step]:
    """A long run that allocates a little more often than it frees."""
    dice = random.Random(seed)

    def size() -> int:
        largest = dice.choice([600, MIB, 2 * MIB, 12 * MIB, 64 * MIB])
        return dice.randint(1, largest)

    kinds = dice.choices("afe", (52, 47, 1), k=count)
    return [(kind, size(), dice.randrange(2**16), 0) for kind in kinds]


def take(allocator: Allocator | Reference, step: Step, live: list[int]) -> int | None:
    """Run one step; return the address of an allocation, -1 if out of memory, else None."""
    kind, size, pick, stream = step
    address = live[pick % len(live)] if live else None
    if kind == "a":
        try:
            return allocator.malloc(size, stream)
        except (AllocatorOutOfMemory, NoRoom):
            return -1
    elif kind == "f" and address is not None:
        allocator.free(address)
    elif kind == "r" and address is not None:
        allocator.record_stream(address, stream)
    elif kind == "y":
        allocator.synchronize(stream)
    elif kind == "e":
        allocator.synchronize_all()
        allocator.empty_cache()
    return None


def remember(step: Step, address: int | None, live: list[int]) -> None:
    if address is not None and address >= 0:
        live.append(address)
    elif step[0] == "f" and live:
        live.remove(live[step[2] % len(live)])


def compare(settings: AllocatorSettings, steps: list[Step], seed: int) -> None:
    """Assert that both allocators give the same result in every step."""
    reference = Reference(settings, shuffled_driver(seed))
    allocator = Allocator(settings, new_segment=shuffled_driver(seed))
    live: list[int] = []
    peaks = [0, 0]
    for step in steps:
        expected = take(reference, step, live)
        assert take(allocator, step, live) == expected
        remember(step, expected, live)
        peaks = [max(peaks[0], reference.reserved), max(peaks[1], reference.allocated)]
        assert allocator.reserved == reference.reserved
        assert allocator.allocated == reference.allocated
        assert allocator.retries == reference.retries
        assert allocator.segments == reference.segments
        assert list(allocator.blocks()) == reference.blocks()
    # Within a step both only ever release before they reserve.
    assert [allocator.peak_reserved, allocator.peak_allocated] == peaks


capacities = st.sampled_from([None, 40 * MIB, 100 * MIB, 250 * MIB])
seeds = st.integers(0, 2**16)


@given(steps_of("aaaafffe"), capacities, seeds)
def test_it_decides_as_the_reference_does(
    steps: list[Step], capacity: int | None, seed: int
) -> None:
    compare(AllocatorSettings(capacity=capacity), steps, seed)


@pytest.mark.parametrize("capacity", [None, 600 * MIB, 200 * MIB])
def test_it_decides_as_the_reference_does_in_a_long_run(capacity: int | None) -> None:
    compare(AllocatorSettings(capacity=capacity), random_steps(seed=7, count=700), seed=7)


@given(steps_of("aaaafffe"), st.sampled_from([21, 32, 50]), capacities, seeds)
def test_it_decides_as_the_reference_does_with_a_largest_block_to_split(
    steps: list[Step], limit: int, capacity: int | None, seed: int
) -> None:
    compare(AllocatorSettings(capacity=capacity, max_split_size=limit * MIB), steps, seed)


@given(steps_of("aaaafffe"), st.sampled_from([1, 2, 4, 8, 64]), capacities, seeds)
def test_it_decides_as_the_reference_does_with_sizes_rounded_up(
    steps: list[Step], divisions: int, capacity: int | None, seed: int
) -> None:
    compare(AllocatorSettings(capacity, roundup_power2_divisions=divisions), steps, seed)


@given(steps_of("aaaafff"), st.sampled_from([0.1, 0.5, 0.8]), seeds)
def test_it_decides_as_the_reference_does_with_garbage_collected(
    steps: list[Step], share: float, seed: int
) -> None:
    compare(AllocatorSettings(250 * MIB, garbage_collection_threshold=share), steps, seed)


@given(steps_of("aaaaaffffrryye", streams=3), capacities, seeds)
def test_it_decides_as_the_reference_does_with_several_streams(
    steps: list[Step], capacity: int | None, seed: int
) -> None:
    compare(AllocatorSettings(capacity=capacity), steps, seed)


# What is always so

SETTINGS = {
    "default": AllocatorSettings(),
    "capacity": AllocatorSettings(capacity=150 * MIB),
    "max split": AllocatorSettings(capacity=150 * MIB, max_split_size=21 * MIB),
    "rounded up": AllocatorSettings(roundup_power2_divisions=4),
    "garbage": AllocatorSettings(capacity=150 * MIB, garbage_collection_threshold=0.4),
    "all": AllocatorSettings(150 * MIB, 30 * MIB, 8, 0.6),
    "expandable": AllocatorSettings(expandable_segments=True),
    "expandable, rounded up": AllocatorSettings(
        roundup_power2_divisions=4, expandable_segments=True
    ),
    "expandable, max split": AllocatorSettings(max_split_size=21 * MIB, expandable_segments=True),
}
overshoot: list[Step] = [("a", 30 * MIB, 0, 0), ("a", 512, 0, 0), ("a", 12 * MIB, 0, 0)]
"""With 60 MiB: two pages of 20 MiB and one of 2 MiB, then 12 MiB that need another 20."""


def run_checked(allocator: Allocator, steps: list[Step]) -> dict[int, int]:
    live: list[int] = []
    asked: dict[int, int] = {}
    for step in steps:
        address = take(allocator, step, live)
        remember(step, address, live)
        if address is not None and address >= 0:
            asked[address] = step[1]
        asked = {address: asked[address] for address in live}
        check(allocator, asked)
    return asked


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=40)
@given(steps_of("aaaaaffffrrye", streams=3))
def test_blocks_tile_what_is_reserved_and_no_byte_is_lost(name: str, steps: list[Step]) -> None:
    run_checked(Allocator(SETTINGS[name], first_address=BASE), steps)


@pytest.mark.parametrize(
    "name",
    SETTINGS,
)
@settings(max_examples=20)
@given(steps_of("aaaaaffffrrye", streams=3))
@example([("a", 512, 0, 0), ("a", 2 * MIB, 0, 0)])
def test_everything_is_released_at_the_end(name: str, steps: list[Step]) -> None:
    allocator = Allocator(SETTINGS[name], first_address=BASE)
    for address in run_checked(allocator, steps):
        allocator.free(address)

    allocator.synchronize_all()
    allocator.empty_cache()

    check(allocator, {})
    assert allocator.reserved == allocator.allocated == 0


@given(steps_of("aaaaaffffrrye", streams=3))
@example(overshoot)
def test_expandable_segments_stay_within_the_capacity(steps: list[Step]) -> None:
    settings = AllocatorSettings(capacity=60 * MIB, expandable_segments=True)

    run_checked(Allocator(settings, first_address=BASE), steps)
