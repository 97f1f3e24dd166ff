"""PyTorch's CUDA caching allocator as a state machine: addresses and segments, no memory.

The rules are those of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (torch 2.6
to 2.14): a request is rounded, takes the smallest free block of its pool and stream that holds it
(the lowest address among equals), splits it if enough remains, and merges with its free neighbours
when it is freed. On a miss a new segment is asked of the device; if that fails, what is cached is
given back and it is tried once more. `benchmarks/predict.py` replays recordings of real GPUs: every
address and every segment comes out as recorded.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rightbatch._predict.blocks import (
    ADDRESS_BITS,
    ADDRESSES,
    LARGE_SEGMENT,
    MIN_BLOCK,
    SMALL_SEGMENT,
    SMALL_SIZE,
    Block,
    Pool,
    extent_of,
    is_free_and_mapped,
    page_of,
    round_size,
    segment_size,
)

_NO_LIMIT = 1 << 62


class AllocatorOutOfMemory(Exception):
    """No segment could be had, even with everything cached given back.

    `size` is the request, rounded; `reserved` and `allocated` are what was held then, in bytes.
    """

    def __init__(self, size: int, reserved: int, allocated: int) -> None:
        super().__init__(f"{size} bytes asked, {reserved} reserved, {allocated} allocated")
        self.size, self.reserved, self.allocated = size, reserved, allocated


@dataclass(frozen=True)
class AllocatorSettings:
    """What `PYTORCH_ALLOC_CONF` can say, with torch's defaults; sizes in bytes.

    `capacity` is the most that may be reserved (None: without end). `max_split_size` None means
    that any block may be split. `roundup_power2_divisions` 0 or 1 rounds to 512 bytes.
    `garbage_collection_threshold` is a share of `capacity`, 0 for never.
    """

    capacity: int | None = None
    max_split_size: int | None = None
    roundup_power2_divisions: int = 0
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False


class Allocator:
    """Serves `malloc` and `free` as the caching allocator of one device would.

    `new_segment(size)` gives the address of a new segment, or None if the device has no room; by
    default addresses count up from `first_address`, as the driver's mostly do.
    """

    def __init__(
        self,
        settings: AllocatorSettings | None = None,
        *,
        new_segment: Callable[[int], int | None] | None = None,
        first_address: int = 1 << 32,
    ) -> None:
        self.settings = settings or AllocatorSettings()
        self.reserved = self.peak_reserved = 0
        self.allocated = self.peak_allocated = 0
        self.retries = 0
        self.segments: dict[int, int] = {}
        self._pools: dict[tuple[bool, int], Pool] = {}
        self._clocks: dict[bool, list[int]] = {True: [0], False: [0]}
        self._small, self._large = self._pool(True, 0), self._pool(False, 0)
        self._live: dict[int, Block] = {}
        self._pending: list[Block] = []
        self._next_address = first_address
        self._new_segment = new_segment or self._count_up
        self._max_split = self.settings.max_split_size or _NO_LIMIT
        self._capacity = self.settings.capacity or _NO_LIMIT
        self._divisions = self.settings.roundup_power2_divisions
        self._expandable = self.settings.expandable_segments

    # What a program asks for

    def malloc(self, size: int, stream: int = 0) -> int:
        """The address of a block of at least `size` bytes.

        Raises:
            AllocatorOutOfMemory: if there is no room for it within the capacity.
        """
        rounded = (size + 511) & -512 if size > MIN_BLOCK else MIN_BLOCK
        if self._divisions > 1:
            rounded = round_size(size, self._divisions)
        is_small = rounded <= SMALL_SIZE
        if stream:
            pool = self._pool(is_small, stream)
        else:
            pool = self._small if is_small else self._large
        pool.clock[0] += 1
        order = pool.order
        index = bisect_left(order, rounded << ADDRESS_BITS)
        if index < len(order) and not self._expandable and self._max_split == _NO_LIMIT:
            block = pool.blocks.pop(order.pop(index) & ADDRESSES)
            block.is_free = False
        else:
            found = self._find(pool, rounded)
            block = found if found is not None else self._miss(pool, rounded)
        remaining = block.size - rounded
        if remaining and self._is_split(pool, rounded, remaining):
            rest = Block(block.address + rounded, remaining, pool)
            block.size = rounded
            rest.previous, rest.next = block, block.next
            if block.next is not None:
                block.next.previous = rest
            block.next = rest
            rest.age = pool.clock[0]
            pool.blocks[rest.address] = rest
            insort(order, (remaining << ADDRESS_BITS) | rest.address)
        self._live[block.address] = block
        self.allocated += block.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block.address

    def free(self, address: int) -> None:
        """Give a block back; one that other streams use stays until they are synchronized."""
        block = self._live.pop(address)
        self.allocated -= block.size
        if block.uses:
            self._pending.append(block)
            return
        self._give_back(block)

    def record_stream(self, address: int, stream: int) -> None:
        """The block at `address` is used on `stream` as well."""
        block = self._live[address]
        if stream != block.pool.stream:
            block.uses = (block.uses or set()) | {stream}

    def synchronize(self, stream: int) -> None:
        """Everything that was asked of `stream` has happened."""
        still = []
        for block in self._pending:
            assert block.uses is not None
            block.uses.discard(stream)
            if block.uses:
                still.append(block)
            else:
                self._give_back(block)
        self._pending = still

    def empty_cache(self) -> None:
        """Give every wholly free segment back to the device, once other streams are done."""
        self.synchronize_all()
        for pool in self._pools.values():
            for block in list(pool.blocks.values()):
                if block.previous is None and block.next is None and not self._expandable:
                    self._release(block)
                elif self._expandable:
                    self._unmap(block)

    def release_segment(self, address: int) -> bool:
        """Give back the segment at `address`, as a recording says; False if it is not free."""
        for pool in self._pools.values():
            block = pool.blocks.get(address)
            if block is not None and block.size == self.segments.get(address):
                self._release(block)
                return True
        return False

    def adopt(self, segment: int, size: int, live: list[tuple[int, int]], small: bool) -> None:
        """Take over a segment that existed before, with its `live` blocks (address, size)."""
        pool = self._pool(small, 0)
        self.segments[segment] = size
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        previous, at = None, segment
        # Between live blocks lies a free one; free neighbours would have been merged.
        for address, length in [*sorted(live), (segment + size, 0)]:
            pieces = [(at, address - at, True)] if address > at else []
            pieces += [(address, length, False)] if length else []
            for start, extent, is_free in pieces:
                block = Block(start, extent, pool)
                block.previous = previous
                if previous is not None:
                    previous.next = block
                previous = block
                if is_free:
                    pool.put(block)
                else:
                    block.is_free = False
                    self._live[start] = block
                    self.allocated += extent
            at = address + length
        self.peak_allocated = max(self.peak_allocated, self.allocated)

    def size_of(self, address: int) -> int:
        """Bytes of the live block at `address`, what was not split off included."""
        return self._live[address].size

    def blocks(self) -> Iterator[tuple[int, int, bool]]:
        """(address, size, is free) of every block, mapped only; for checks."""
        seen = [*self._live.values(), *self._pending]
        for pool in self._pools.values():
            seen += pool.blocks.values()
        for block in sorted(seen, key=lambda b: b.address):
            yield block.address, block.size, block.is_free

    # How it is served

    def _pool(self, is_small: bool, stream: int) -> Pool:
        clock = self._clocks[is_small]
        return self._pools.setdefault((is_small, stream), Pool(is_small, stream, clock))

    def _count_up(self, size: int) -> int:
        address = self._next_address
        self._next_address += -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
        return address

    def _is_split(self, pool: Pool, size: int, remaining: int) -> bool:
        if pool.is_small or self._expandable:
            return remaining >= MIN_BLOCK
        return remaining > SMALL_SIZE and size < self._max_split

    def _find(self, pool: Pool, size: int) -> Block | None:
        """The block that best fit chooses, taken out of its pool."""
        candidates = pool.first_of(size)
        block = next(candidates, None)
        if block is None:
            return None
        if self._expandable:
            # A block that can grow counts as what it can grow to.
            for following in candidates:
                if extent_of(following) >= extent_of(block):
                    break
                block = following
        if size < self._max_split <= block.size:
            return None
        if size >= self._max_split and block.size >= size + LARGE_SEGMENT:
            return None
        pool.take(block)
        return block

    def _miss(self, pool: Pool, size: int) -> Block:
        if self.settings.garbage_collection_threshold and self.settings.capacity:
            self._collect_garbage()
        block = self._grow(pool, size)
        if block is None and self._max_split != _NO_LIMIT and self._release_oversize(pool, size):
            block = self._grow(pool, size)
        if block is None:
            self.retries += 1
            self.empty_cache()
            block = self._grow(pool, size)
        if block is None:
            raise AllocatorOutOfMemory(size, self.reserved, self.allocated)
        return block

    def synchronize_all(self) -> None:
        """Wait for every stream, as the allocator does before it gives memory back."""
        for block in self._pending:
            self._give_back(block)
        self._pending = []

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """A block in a new segment, or in new pages; None where there is no room."""
        segment = segment_size(size)
        if self.reserved + segment > self._capacity:
            return None
        if self._expandable:
            return self._map_for(pool, size)
        address = self._new_segment(segment)
        if address is None:
            return None
        self.segments[address] = segment
        self._reserve(segment)
        block = Block(address, segment, pool)
        block.is_free = False
        return block

    def _reserve(self, size: int) -> None:
        self.reserved += size
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved

    def _give_back(self, block: Block) -> None:
        pool = block.pool
        before, after = block.previous, block.next
        if before is not None and before.is_free and before.mapped:
            pool.take(before)
            before.size += block.size
            before.next = after
            if after is not None:
                after.previous = before
            block = before
        if after is not None and after.is_free and after.mapped:
            pool.take(after)
            block.size += after.size
            block.next = after.next
            if after.next is not None:
                after.next.previous = block
        block.uses = None
        block.is_free = True
        block.age = pool.clock[0]
        pool.blocks[block.address] = block
        insort(pool.order, (block.size << ADDRESS_BITS) | block.address)

    def _release(self, block: Block) -> None:
        block.pool.take(block)
        del self.segments[block.address]
        self.reserved -= block.size

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """With `max_split_size`: one block that is large enough, or several, the largest first."""
        if self._expandable:
            return False  # pages are no segments
        wanted = max(size, self._max_split)
        block = next(pool.first_of(wanted), None)
        if block is not None:
            self._release(block)
            return True
        released = 0
        for key in reversed(pool.order.copy()):
            if released >= wanted or key >> ADDRESS_BITS < self._max_split:
                break
            released += key >> ADDRESS_BITS
            self._release(pool.blocks[key & ADDRESSES])
        return released >= wanted

    def _collect_garbage(self) -> None:
        """Release whole segments that were not used for long, until the threshold is kept."""
        threshold = int(self.settings.garbage_collection_threshold * self._capacity)
        target = self.reserved - threshold
        if target <= 0:
            return
        whole = [
            block
            for (is_small, _), pool in self._pools.items()
            if not is_small
            for block in pool.first_of(0)
            if block.previous is None and block.next is None and not self._expandable
        ]
        reclaimed, was_freed = 0, True
        while whole and reclaimed < target and was_freed:
            mean_age = sum(b.pool.clock[0] - b.age for b in whole) / len(whole)
            old = [b for b in whole if b.pool.clock[0] - b.age >= mean_age]
            was_freed = bool(old)
            for block in old:
                reclaimed += block.size
                whole.remove(block)
                self._release(block)

    # Expandable segments: one range of addresses per pool, pages mapped where they are missing

    def _map_for(self, pool: Pool, size: int) -> Block | None:
        block = self._expandable_block(pool, size)
        while not block.mapped or block.size < size:
            missing = block if not block.mapped else block.next
            held = block.size if block.mapped else 0
            assert missing is not None
            grown = self._map(missing, min(size - held, missing.size))
            if grown is None:
                return None
            block = grown
        pool.take(block)
        return block

    def _expandable_block(self, pool: Pool, size: int) -> Block:
        """The first free or unmapped block from which on there are addresses for `size`."""
        for _, block in pool.unmapped:
            start = block
            before = block.previous
            if before is not None and before.is_free:
                start = before
            room, at = 0, start
            while room < size and at is not None and at.is_free:
                room += at.size
                at = at.next  # type: ignore[assignment]
            if room >= size:
                return start
        # The driver reserves 1.125 times the device's memory, addresses only.
        page = page_of(pool)
        extent = max(self.settings.capacity or 2**40, size) * 9 // 8
        # It begins at a page, so that pages can be told by their address.
        self._next_address = -(-self._next_address // page) * page
        block = Block(self._count_up(-(-extent // page) * page), -(-extent // page) * page, pool)
        block.mapped = False
        insort(pool.unmapped, (block.address, block), key=lambda pair: pair[0])
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Map pages for the first `size` bytes of an unmapped block; the free block they are in.

        None if the pages are more than there is room for.
        """
        pool, page = block.pool, page_of(block.pool)
        length = min(-(-size // page) * page, block.size)
        if self.reserved + length > self._capacity:
            return None
        pool.unmapped = [pair for pair in pool.unmapped if pair[1] is not block]
        if length < block.size:
            rest = Block(block.address + length, block.size - length, pool)
            rest.mapped = False
            rest.previous, rest.next = block, block.next
            if block.next is not None:
                block.next.previous = rest
            block.next, block.size = rest, length
            insort(pool.unmapped, (rest.address, rest), key=lambda pair: pair[0])
        block.mapped = True
        self._reserve(length)
        start = block.previous if is_free_and_mapped(block.previous) else block
        self._give_back(block)
        assert start is not None
        return start

    def _unmap(self, block: Block) -> None:
        """Give back the whole pages inside a free block."""
        pool, page = block.pool, page_of(block.pool)
        start = -(-block.address // page) * page
        stop = (block.address + block.size) // page * page
        if stop <= start:
            return
        pool.take(block)
        before, after = block.previous, block.next
        pieces = []
        for low, high in (
            (block.address, start),
            (start, stop),
            (stop, block.address + block.size),
        ):
            if high > low:
                piece = Block(low, high - low, pool)
                piece.mapped = low != start
                pieces.append(piece)
        for left, right in zip([before, *pieces], [*pieces, after], strict=True):
            if left is not None:
                left.next = right
            if right is not None:
                right.previous = left
        for piece in pieces:
            if piece.mapped:
                pool.put(piece)
            else:
                self.reserved -= piece.size
                self._join_unmapped(piece)

    def _join_unmapped(self, block: Block) -> None:
        pool = block.pool
        for neighbour in (block.previous, block.next):
            if neighbour is not None and not neighbour.mapped:
                pool.unmapped = [pair for pair in pool.unmapped if pair[1] is not neighbour]
                first, second = sorted((block, neighbour), key=lambda b: b.address)
                first.size += second.size
                first.next = second.next
                if second.next is not None:
                    second.next.previous = first
                block = first
        insort(pool.unmapped, (block.address, block), key=lambda pair: pair[0])
