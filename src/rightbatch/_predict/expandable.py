"""Expandable segments: one range of addresses per pool, with pages mapped where they are missing.

The rules are those of `ExpandableSegment` in c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from bisect import insort
from typing import Protocol

from rightbatch._predict.blocks import Block, Pool, is_free_and_mapped, page_of


class Reserver(Protocol):
    """The allocator's account of reserved memory and addresses."""

    def has_room(self, size: int) -> bool:
        """Return whether `size` more bytes may be reserved."""

    def reserve(self, size: int) -> None:
        """Count `size` bytes as reserved, or as returned to the device if negative."""

    def reserve_addresses(self, size: int, alignment: int) -> int:
        """Return the first of `size` unused addresses, a multiple of `alignment`."""

    def add_free_block(self, block: Block) -> None:
        """Merge a block with its free neighbours and add it to its pool."""


class ExpandableSegments:
    """Maps and unmaps pages for the pools of an allocator on a device of `device_bytes`."""

    def __init__(self, reserver: Reserver, device_bytes: int) -> None:
        self._reserver = reserver
        self._device_bytes = device_bytes

    def block_for(self, pool: Pool, size: int) -> Block | None:
        """Return a block of at least `size` bytes, taken out of its pool; None without room."""
        block = self._first_block(pool, size)
        while not block.mapped or block.size < size:
            missing = block if not block.mapped else block.next
            mapped_bytes = block.size if block.mapped else 0
            assert missing is not None
            grown = self._map(missing, min(size - mapped_bytes, missing.size))
            if grown is None:
                return None
            block = grown
        pool.take(block)
        return block

    def unmap(self, block: Block) -> None:
        """Return the whole pages inside a free block to the device."""
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
                self._reserver.reserve(-piece.size)
                self._merge_unmapped(piece)

    def _first_block(self, pool: Pool, size: int) -> Block:
        """Return the first free or unmapped block that is followed by addresses for `size`."""
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
        # The driver reserves addresses for 1.125 times the device's memory. The range starts at a
        # page, so that pages are identified by their address.
        page = page_of(pool)
        extent = -(-(max(self._device_bytes, size) * 9 // 8) // page) * page
        block = Block(self._reserver.reserve_addresses(extent, page), extent, pool)
        block.mapped = False
        _insert_unmapped(block)
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Map pages for the first `size` bytes of an unmapped block; return their free block.

        None if there is no room for the pages.
        """
        pool, page = block.pool, page_of(block.pool)
        length = min(-(-size // page) * page, block.size)
        if not self._reserver.has_room(length):
            return None
        _remove_unmapped(block)
        if length < block.size:
            rest = Block(block.address + length, block.size - length, pool)
            rest.mapped = False
            rest.previous, rest.next = block, block.next
            if block.next is not None:
                block.next.previous = rest
            block.next, block.size = rest, length
            _insert_unmapped(rest)
        block.mapped = True
        self._reserver.reserve(length)
        start = block.previous if is_free_and_mapped(block.previous) else block
        self._reserver.add_free_block(block)
        assert start is not None
        return start

    def _merge_unmapped(self, block: Block) -> None:
        """Merge an unmapped block with its unmapped neighbours."""
        for neighbour in (block.previous, block.next):
            if neighbour is not None and not neighbour.mapped:
                _remove_unmapped(neighbour)
                first, second = sorted((block, neighbour), key=lambda b: b.address)
                first.size += second.size
                first.next = second.next
                if second.next is not None:
                    second.next.previous = first
                block = first
        _insert_unmapped(block)


def _insert_unmapped(block: Block) -> None:
    insort(block.pool.unmapped, (block.address, block), key=lambda pair: pair[0])


def _remove_unmapped(block: Block) -> None:
    block.pool.unmapped = [pair for pair in block.pool.unmapped if pair[1] is not block]
