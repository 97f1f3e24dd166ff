"""A reference allocator of plain lists, and the invariants of both."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from rightbatch._predict.allocator import Allocator, AllocatorSettings

MIB = 2**20


@dataclass
class Piece:
    """A part of a segment; `users` are the streams that still use it."""

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
    """The same rules, implemented as scans of one list sorted by address.

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
        """Free the pieces that no stream uses any more, and merge free neighbours."""
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
        """Serve a miss: collect garbage, request a segment, empty the cache, request again."""
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
    """Return addresses of new segments in random order, by seed."""
    slots = iter(random.Random(seed).sample(range(1, 2**15), 2**12))
    return lambda size: next(slots) << 36


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
