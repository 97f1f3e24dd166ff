"""A simulator of PyTorch's CUDA caching allocator: addresses and segments without memory.

The rules are those of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (torch 2.6
to 2.14). A request is rounded and served by the smallest free block of its pool and stream that
holds it (the lowest address among equals). The block is split if enough remains, and merged with
its free neighbours when it is freed. On a miss the device is asked for a new segment; if that
fails, cached segments are released and it is tried once more. `benchmarks/predict.py` replays
recordings of real GPUs: every address and every segment is as recorded.
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
    round_size,
    segment_size,
)
from rightbatch._predict.expandable import ExpandableSegments

_NO_LIMIT = 1 << 62


class AllocatorOutOfMemory(Exception):
    """No new segment was possible, even after all cached segments were released.

    `size` is the rounded request; `reserved` and `allocated` are the bytes held at that time.
    """

    def __init__(self, size: int, reserved: int, allocated: int) -> None:
        super().__init__(f"{size} bytes requested, {reserved} reserved, {allocated} allocated")
        self.size, self.reserved, self.allocated = size, reserved, allocated


@dataclass(frozen=True)
class AllocatorSettings:
    """The settings of `PYTORCH_ALLOC_CONF`, with torch's defaults; sizes in bytes.

    `capacity` is the maximum that can be reserved (None: unlimited). With `max_split_size` None
    any block can be split. `roundup_power2_divisions` 0 or 1 rounds to 512 bytes.
    `garbage_collection_threshold` is a share of `capacity`, 0 to disable it.
    """

    capacity: int | None = None
    max_split_size: int | None = None
    roundup_power2_divisions: int = 0
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False


class Allocator:
    """Simulates `malloc` and `free` of the caching allocator of one device.

    `new_segment(size)` returns the address of a new segment, or None if the device has no room; by
    default addresses increase from `first_address`, as the driver's usually do.
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
        self._new_segment = new_segment or self._next_segment
        self._max_split = self.settings.max_split_size or _NO_LIMIT
        self._capacity = self.settings.capacity or _NO_LIMIT
        self._divisions = self.settings.roundup_power2_divisions
        self._expandable: ExpandableSegments | None = None
        if self.settings.expandable_segments:
            self._expandable = ExpandableSegments(self, self.settings.capacity or 2**40)

    # Requests of a program

    def malloc(self, size: int, stream: int = 0) -> int:
        """Return the address of a block of at least `size` bytes.

        Raises:
            AllocatorOutOfMemory: if it does not fit into the capacity.
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
        if index < len(order) and self._expandable is None and self._max_split == _NO_LIMIT:
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
        """Free a block; one in use by other streams stays until they are synchronized."""
        block = self._live.pop(address)
        self.allocated -= block.size
        if block.uses:
            self._pending.append(block)
            return
        self.add_free_block(block)

    def record_stream(self, address: int, stream: int) -> None:
        """Mark the block at `address` as used on `stream` too."""
        block = self._live[address]
        if stream != block.pool.stream:
            block.uses = (block.uses or set()) | {stream}

    def synchronize(self, stream: int) -> None:
        """Free the pending blocks whose work on `stream` has finished."""
        waiting = []
        for block in self._pending:
            assert block.uses is not None
            block.uses.discard(stream)
            if block.uses:
                waiting.append(block)
            else:
                self.add_free_block(block)
        self._pending = waiting

    def empty_cache(self) -> None:
        """Wait for all streams, then return every entirely free segment to the device."""
        self.synchronize_all()
        for pool in self._pools.values():
            for block in list(pool.blocks.values()):
                if self._expandable is not None:
                    self._expandable.unmap(block)
                elif block.previous is None and block.next is None:
                    self._release(block)

    def release_segment(self, address: int) -> bool:
        """Return the segment at `address` to the device; False if it is not free."""
        for pool in self._pools.values():
            block = pool.blocks.get(address)
            if block is not None and block.size == self.segments.get(address):
                self._release(block)
                return True
        return False

    def adopt(self, segment: int, size: int, live: list[tuple[int, int]], small: bool) -> None:
        """Add an existing segment with its `live` blocks (address, size)."""
        pool = self._pool(small, 0)
        self.segments[segment] = size
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        previous, at = None, segment
        # The space between live blocks is one free block, because free neighbours are merged.
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
        """Return the bytes of the live block at `address`, including a remainder not split off."""
        return self._live[address].size

    def blocks(self) -> Iterator[tuple[int, int, bool]]:
        """Iterate over (address, size, is free) of every mapped block; for tests."""
        blocks = [*self._live.values(), *self._pending]
        for pool in self._pools.values():
            blocks += pool.blocks.values()
        for block in sorted(blocks, key=lambda b: b.address):
            yield block.address, block.size, block.is_free

    # The account of reserved memory (`expandable.Reserver`)

    def has_room(self, size: int) -> bool:
        """Return whether `size` more bytes may be reserved."""
        return self.reserved + size <= self._capacity

    def reserve(self, size: int) -> None:
        """Count `size` bytes as reserved, or as returned to the device if negative."""
        self.reserved += size
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved

    def reserve_addresses(self, size: int, alignment: int) -> int:
        """Return the first of `size` unused addresses, a multiple of `alignment`."""
        address = -(-self._next_address // alignment) * alignment
        self._next_address = address + -(-size // SMALL_SEGMENT) * SMALL_SEGMENT
        return address

    # Search, growth and release

    def _pool(self, is_small: bool, stream: int) -> Pool:
        clock = self._clocks[is_small]
        return self._pools.setdefault((is_small, stream), Pool(is_small, stream, clock))

    def _next_segment(self, size: int) -> int:
        return self.reserve_addresses(size, 1)

    def _is_split(self, pool: Pool, size: int, remaining: int) -> bool:
        if pool.is_small or self._expandable is not None:
            return remaining >= MIN_BLOCK
        return remaining > SMALL_SIZE and size < self._max_split

    def _find(self, pool: Pool, size: int) -> Block | None:
        """Take the best-fitting block out of its pool and return it."""
        candidates = pool.first_of(size)
        block = next(candidates, None)
        if block is None:
            return None
        if self._expandable is not None:
            # A block that can grow is compared by the size that it can grow to.
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
        """Wait for all streams, as the allocator does before it releases memory."""
        for block in self._pending:
            self.add_free_block(block)
        self._pending = []

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """Return a block in a new segment or new pages; None without room."""
        segment = segment_size(size)
        if not self.has_room(segment):
            return None
        if self._expandable is not None:
            return self._expandable.block_for(pool, size)
        address = self._new_segment(segment)
        if address is None:
            return None
        self.segments[address] = segment
        self.reserve(segment)
        block = Block(address, segment, pool)
        block.is_free = False
        return block

    def add_free_block(self, block: Block) -> None:
        """Merge a block with its free neighbours and add it to its pool."""
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
        """Release one large enough block beyond `max_split_size`, or several, largest first."""
        if self._expandable is not None:
            return False  # pages are not segments
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
        """Release the segments unused for longest until reserved memory is below the threshold."""
        threshold = int(self.settings.garbage_collection_threshold * self._capacity)
        target = self.reserved - threshold
        if target <= 0:
            return
        whole = [
            block
            for (is_small, _), pool in self._pools.items()
            if not is_small
            for block in pool.first_of(0)
            if block.previous is None and block.next is None and self._expandable is None
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
