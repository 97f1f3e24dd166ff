"""The allocator against a slow one of plain lists, its invariants, and its rules one by one."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rightbatch._memory.allocator import Allocator, AllocatorOutOfMemory, AllocatorSettings

MIB = 2**20
BASE = 20 * MIB * 1024
"""A first address at which a page of either size begins."""


@dataclass
class Piece:
    """A stretch of a segment; `users` are the streams that must still be waited for."""

    address: int
    size: int
    segment: int
    is_small: bool
    stream: int
    is_free: bool = True
    freed_at: int = 0
    users: set[int] = field(default_factory=set)


class NoRoom(Exception):
    """The reference is out of memory."""


class Reference:
    """The rules, as slow as can be: every question is a scan of one list, sorted by address.

    `log` holds what a recording would: a (alloc), f (free), s (new segment), S (released).
    """

    def __init__(self, settings: AllocatorSettings, driver: Callable[[int], int]) -> None:
        self.settings = settings
        self.driver = driver
        self.pieces: list[Piece] = []
        self.segments: dict[int, int] = {}
        self.retries = 0
        self.searches = {True: 0, False: 0}
        self.log: list[tuple[str, int, int]] = []

    @property
    def reserved(self) -> int:
        return sum(self.segments.values())

    @property
    def allocated(self) -> int:
        return sum(piece.size for piece in self.live())

    def live(self) -> list[Piece]:
        return [piece for piece in self.pieces if not piece.is_free and piece.freed_at == 0]

    def blocks(self) -> list[tuple[int, int, bool]]:
        return [(piece.address, piece.size, piece.is_free) for piece in self.pieces]

    def rounded(self, size: int) -> int:
        divisions = self.settings.roundup_power2_divisions
        if divisions < 2 or size <= 512 * divisions:
            return next(n for n in range(512, size + 1024, 512) if n >= size)
        power = 1
        while power * 2 <= size:
            power *= 2
        return next(n for n in range(power, 2 * power + 1, power // divisions) if n >= size)

    def malloc(self, size: int, stream: int = 0) -> int:
        rounded = self.rounded(size)
        is_small = rounded <= MIB
        self.searches[is_small] += 1
        piece = self._best(rounded, is_small, stream) or self._more(rounded, is_small, stream)
        rest = piece.size - rounded
        limit = self.settings.max_split_size
        if rest >= 512 if is_small else rest > MIB and (limit is None or rounded < limit):
            piece.size = rounded
            after = Piece(piece.address + rounded, rest, piece.segment, is_small, stream)
            after.freed_at = self.searches[is_small]
            self._add(after)
        piece.is_free, piece.freed_at = False, 0
        self.log.append(("a", piece.address, size))
        return piece.address

    def free(self, address: int) -> None:
        (piece,) = (p for p in self.live() if p.address == address)
        self.log.append(("f", address, 0))
        piece.freed_at = self.searches[piece.is_small]
        self._settle()

    def record_stream(self, address: int, stream: int) -> None:
        (piece,) = (p for p in self.live() if p.address == address)
        piece.users |= {stream} - {piece.stream}

    def synchronize(self, stream: int) -> None:
        for piece in self.pieces:
            if not piece.is_free and piece.freed_at:
                piece.users.discard(stream)
        self._settle()

    def synchronize_all(self) -> None:
        for stream in {user for piece in self.pieces for user in piece.users}:
            self.synchronize(stream)

    def empty_cache(self) -> None:
        for piece in self._whole():
            self._release(piece)

    def _add(self, piece: Piece) -> None:
        self.pieces = sorted([*self.pieces, piece], key=lambda p: p.address)

    def _settle(self) -> None:
        """What is freed and not in use elsewhere becomes free, and free neighbours become one."""
        for piece in self.pieces:
            if not piece.is_free and piece.freed_at and not piece.users:
                piece.is_free, piece.freed_at = True, self.searches[piece.is_small]
                self._merge(piece)
                return self._settle()
        return None

    def _merge(self, piece: Piece) -> None:
        for left, right in pairwise(self.pieces):
            together = left.segment == right.segment and left.is_free and right.is_free
            if together and (piece is left or piece is right):
                left.size += right.size
                left.freed_at = piece.freed_at
                self.pieces = [p for p in self.pieces if p is not right]
                return self._merge(left)
        return None

    def _cached(self, is_small: bool, stream: int) -> list[Piece]:
        """Smallest first, lowest address first."""
        free = [piece for piece in self.pieces if piece.is_free]
        mine = [p for p in free if p.is_small == is_small and p.stream == stream]
        return sorted(mine, key=lambda p: (p.size, p.address))

    def _whole(self) -> list[Piece]:
        return [p for p in self.pieces if p.is_free and p.size == self.segments[p.segment]]

    def _best(self, size: int, is_small: bool, stream: int) -> Piece | None:
        fitting = [piece for piece in self._cached(is_small, stream) if piece.size >= size]
        if not fitting:
            return None
        limit = self.settings.max_split_size
        if limit is not None:
            if size < limit and fitting[0].size >= limit:
                return None
            if size >= limit and fitting[0].size >= size + 20 * MIB:
                return None
        return fitting[0]

    def _more(self, size: int, is_small: bool, stream: int) -> Piece:
        """A miss: garbage is collected, the device asked, the cache emptied, the device asked."""
        if self.settings.garbage_collection_threshold:
            self._collect()
        piece = self._new(size, is_small, stream)
        if piece is None and self._release_oversize(size, is_small, stream):
            piece = self._new(size, is_small, stream)
        if piece is None:
            self.retries += 1
            self.synchronize_all()
            self.empty_cache()
            piece = self._new(size, is_small, stream)
        if piece is None:
            raise NoRoom
        return piece

    def _new(self, size: int, is_small: bool, stream: int) -> Piece | None:
        steps = {True: 2 * MIB, False: 20 * MIB}
        extent = steps[is_small]
        if size >= 10 * MIB:
            extent = next(n for n in range(10 * MIB, size + 2 * MIB, 2 * MIB) if n >= size)
        capacity = self.settings.capacity
        if capacity is not None and self.reserved + extent > capacity:
            return None
        address = self.driver(extent)
        self.segments[address] = extent
        self.log.append(("s", address, extent))
        piece = Piece(address, extent, address, is_small, stream)
        self._add(piece)
        return piece

    def _release(self, piece: Piece) -> None:
        self.log.append(("S", piece.address, piece.size))
        del self.segments[piece.address]
        self.pieces = [p for p in self.pieces if p is not piece]

    def _release_oversize(self, size: int, is_small: bool, stream: int) -> bool:
        limit = self.settings.max_split_size
        if limit is None:
            return False
        wanted = max(size, limit)
        cached = self._cached(is_small, stream)
        for piece in cached:
            if piece.size >= wanted:
                self._release(piece)
                return True
        released = 0
        for piece in reversed(cached):
            if released < wanted and piece.size >= limit:
                released += piece.size
                self._release(piece)
        return released >= wanted

    def _collect(self) -> None:
        capacity, share = self.settings.capacity, self.settings.garbage_collection_threshold
        assert capacity is not None
        excess = self.reserved - int(share * capacity)
        while excess > 0:
            ages = [(self.searches[False] - p.freed_at, p) for p in self._whole() if not p.is_small]
            if not ages:
                return
            mean = sum(age for age, _ in ages) / len(ages)
            for age, piece in ages:
                if age >= mean:
                    excess -= piece.size
                    self._release(piece)


def shuffled_driver(seed: int) -> Callable[[int], int]:
    """Addresses of new segments in no order, always the same for a seed."""
    slots = iter(random.Random(seed).sample(range(1, 2**15), 2**12))
    return lambda size: next(slots) << 36


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
"""What is done, a size, which of the live blocks, a stream."""


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
    """Do one step; the address of an allocation, None for all else, -1 without memory."""
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
    """Both allocators do every step alike."""
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


def check(allocator: Allocator, live: dict[int, int]) -> None:
    """`live` has the request of every address."""
    blocks = list(allocator.blocks())
    settings = allocator.settings
    for (left, size, _), (right, _, _) in pairwise(blocks):
        assert left + size <= right, "blocks do not overlap"
    assert sum(size for _, size, _ in blocks) == allocator.reserved
    assert sum(map(allocator.size_of, live)) == allocator.allocated
    assert all(allocator.size_of(address) >= size for address, size in live.items())
    assert {address for address, _, is_free in blocks if not is_free} >= set(live)
    assert allocator.allocated <= allocator.peak_allocated
    assert allocator.reserved <= allocator.peak_reserved
    if settings.capacity is not None:
        assert allocator.peak_reserved <= settings.capacity
    if settings.expandable_segments:
        assert not allocator.segments
        check_merged(blocks)
        return
    assert sum(allocator.segments.values()) == allocator.reserved
    for segment, size in allocator.segments.items():
        inside = [block for block in blocks if segment <= block[0] < segment + size]
        ends = [segment, *(address + extent for address, extent, _ in inside)]
        assert [address for address, _, _ in inside] == ends[:-1], "blocks tile their segment"
        assert ends[-1] == segment + size
        check_merged(inside)


def check_merged(blocks: list[tuple[int, int, bool]]) -> None:
    for (left, size, left_free), (right, _, right_free) in pairwise(blocks):
        assert not (left_free and right_free and left + size == right), "free neighbours are one"


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
def test_all_is_given_back_in_the_end(name: str, steps: list[Step]) -> None:
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


# Rules, one by one


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


def test_the_smallest_block_that_fits_is_taken_and_the_lowest_among_equals() -> None:
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


def test_freed_neighbours_become_one_on_either_side() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)):
        allocator = Allocator()
        blocks = [allocator.malloc(6 * MIB) for _ in range(3)]
        assert allocator.reserved == 20 * MIB
        for index in order:
            allocator.free(blocks[index])

        assert list(allocator.blocks()) == [(blocks[0], 20 * MIB, True)]


def test_neighbouring_segments_stay_apart() -> None:
    allocator = Allocator()
    left, right = allocator.malloc(20 * MIB), allocator.malloc(20 * MIB)
    assert right == left + 20 * MIB

    allocator.free(left)
    allocator.free(right)

    assert list(allocator.blocks()) == [(left, 20 * MIB, True), (right, 20 * MIB, True)]


def test_what_is_cached_stays_reserved_until_the_cache_is_emptied() -> None:
    allocator = Allocator()
    whole, part, kept = (allocator.malloc(size * MIB) for size in (30, 4, 4))
    allocator.free(whole)
    allocator.free(part)
    assert allocator.reserved == 50 * MIB

    allocator.empty_cache()

    assert allocator.segments == {part: 20 * MIB}
    assert (allocator.reserved, allocator.peak_reserved) == (20 * MIB, 50 * MIB)
    assert allocator.size_of(kept) == 4 * MIB


def test_the_cache_is_emptied_and_the_device_asked_again_before_it_is_out_of_memory() -> None:
    allocator = Allocator(AllocatorSettings(capacity=50 * MIB))
    allocator.free(allocator.malloc(30 * MIB))

    address = allocator.malloc(40 * MIB)

    assert allocator.segments == {address: 40 * MIB}
    assert allocator.retries == 1


def test_a_device_that_refuses_is_asked_again_once_the_cache_is_empty() -> None:
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


def test_out_of_memory_says_what_was_asked_and_what_was_held() -> None:
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


def test_a_request_below_the_limit_is_given_no_block_beyond_it() -> None:
    allocator = max_split()
    oversize = allocator.malloc(40 * MIB)
    allocator.free(oversize)

    other = allocator.malloc(40 * MIB - 512)

    assert other != oversize
    assert allocator.reserved == 80 * MIB


def test_a_request_beyond_the_limit_takes_a_block_whole_if_it_wastes_less_than_20_mib() -> None:
    allocator = max_split()
    larger, smaller = allocator.malloc(60 * MIB), allocator.malloc(58 * MIB)
    allocator.free(larger)

    assert allocator.malloc(40 * MIB) not in (larger, smaller)

    allocator.free(smaller)
    assert allocator.malloc(40 * MIB) == smaller
    assert allocator.malloc(40 * MIB + 1) == larger
    assert allocator.size_of(smaller) == 58 * MIB
    assert allocator.size_of(larger) == 60 * MIB


def test_a_block_below_the_limit_is_split_as_ever() -> None:
    allocator = max_split()
    block = allocator.malloc(38 * MIB)
    allocator.free(block)

    assert [allocator.malloc(10 * MIB), allocator.malloc(10 * MIB)] == [block, block + 10 * MIB]


def test_one_block_beyond_the_limit_is_released_before_the_whole_cache() -> None:
    allocator = max_split(capacity=100)
    cached, oversize = allocator.malloc(20 * MIB), allocator.malloc(60 * MIB)
    allocator.free(cached)
    allocator.free(oversize)

    address = allocator.malloc(40 * MIB)

    assert allocator.segments == {cached: 20 * MIB, address: 40 * MIB}
    assert allocator.retries == 0


def test_blocks_beyond_the_limit_are_released_largest_first_until_there_is_enough() -> None:
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


def test_garbage_collection_leaves_what_is_small_or_in_use_in_part() -> None:
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


def test_a_block_that_other_streams_use_is_kept_until_all_are_synchronized() -> None:
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


def test_what_other_streams_use_is_waited_for_before_it_is_out_of_memory() -> None:
    allocator = Allocator(AllocatorSettings(capacity=30 * MIB))
    block = allocator.malloc(20 * MIB)
    allocator.record_stream(block, 1)
    allocator.free(block)

    address = allocator.malloc(30 * MIB)

    assert allocator.segments == {address: 30 * MIB}


def test_emptying_the_cache_waits_for_what_other_streams_use() -> None:
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


def test_expandable_segments_split_off_whatever_is_left() -> None:
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


def test_pages_that_were_given_back_are_filled_again_first() -> None:
    allocator = expandable()
    _, middle, last = (allocator.malloc(20 * MIB) for _ in range(3))
    allocator.free(middle)
    allocator.empty_cache()
    assert allocator.reserved == 40 * MIB

    assert allocator.malloc(25 * MIB) == last + 20 * MIB, "the gap is too small"
    assert allocator.malloc(20 * MIB) == middle
    assert allocator.reserved == 100 * MIB


def test_pages_that_are_used_in_part_are_not_given_back() -> None:
    allocator = expandable()
    first, second = allocator.malloc(30 * MIB), allocator.malloc(30 * MIB)
    allocator.free(first)

    allocator.empty_cache()

    assert allocator.reserved == 40 * MIB
    assert list(allocator.blocks()) == [
        (BASE + 20 * MIB, 10 * MIB, True),
        (second, 30 * MIB, False),
    ]


def test_expandable_segments_give_their_pages_back_before_they_are_out_of_memory() -> None:
    allocator = expandable(capacity=60 * MIB)
    allocator.free(allocator.malloc(40 * MIB))

    address = allocator.malloc(60 * MIB)

    assert allocator.size_of(address) == allocator.reserved == 60 * MIB
    assert allocator.retries == 1


def test_pages_are_counted_from_where_the_range_begins() -> None:
    allocator = Allocator(AllocatorSettings(expandable_segments=True), first_address=1 << 32)
    allocator.free(allocator.malloc(20 * MIB))

    allocator.empty_cache()

    assert allocator.reserved == 0


def test_no_expandable_block_is_released_as_a_segment_for_being_beyond_the_limit() -> None:
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
