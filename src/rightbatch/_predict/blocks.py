"""Blocks of memory, pools of free blocks, and the rounding of requests."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

MIN_BLOCK = 512
SMALL_SIZE = 2**20
"""Rounded requests up to this size use the small pool."""
SMALL_SEGMENT = 2 * 2**20
LARGE_SEGMENT = 20 * 2**20
MIN_LARGE = 10 * 2**20
"""Requests of at least this size get a segment of their own size, rounded to 2 MiB."""
ADDRESS_BITS = 52
ADDRESSES = (1 << ADDRESS_BITS) - 1


class Block:
    """A part of a segment; `previous` and `next` are its neighbours in the segment."""

    __slots__ = ("address", "age", "is_free", "mapped", "next", "pool", "previous", "size", "uses")

    def __init__(self, address: int, size: int, pool: Pool) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.previous: Block | None = None
        self.next: Block | None = None
        self.is_free = True
        self.mapped = True
        self.age = 0  # the number of searches when it was freed
        self.uses: set[int] | None = None  # the streams of `record_stream`


class Pool:
    """The free blocks of one size class and stream, ordered by size, then address.

    `order` packs size and address into one integer, which `bisect` compares fastest.
    """

    __slots__ = ("blocks", "clock", "is_small", "order", "stream", "unmapped")

    def __init__(self, is_small: bool, stream: int, clock: list[int]) -> None:
        self.is_small = is_small
        self.stream = stream
        self.order: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: list[tuple[int, Block]] = []  # expandable: address ranges without pages
        self.clock = clock  # the number of searches, shared by the pools of this size class

    def put(self, block: Block) -> None:
        """Add a free block."""
        block.is_free = True
        block.age = self.clock[0]
        self.blocks[block.address] = block
        insort(self.order, (block.size << ADDRESS_BITS) | block.address)

    def take(self, block: Block) -> None:
        """Remove a block."""
        del self.order[bisect_left(self.order, (block.size << ADDRESS_BITS) | block.address)]
        del self.blocks[block.address]
        block.is_free = False

    def first_of(self, size: int) -> Iterator[Block]:
        """Iterate over the blocks of at least `size`, in search order."""
        for key in self.order[bisect_left(self.order, size << ADDRESS_BITS) :]:
            yield self.blocks[key & ADDRESSES]


def round_size(size: int, divisions: int = 0) -> int:
    """Round a request of `size` bytes up.

    >>> round_size(1), round_size(513), round_size(1200 * 2**20, 4) // 2**20
    (512, 1024, 1280)
    """
    if size < MIN_BLOCK:
        return MIN_BLOCK
    if divisions > 1 and size > MIN_BLOCK * divisions:
        floor = 1 << (size.bit_length() - 1)
        if size == floor:
            return size
        step = floor // divisions
        return size if step == 0 else -(-size // step) * step
    return -(-size // MIN_BLOCK) * MIN_BLOCK


def segment_size(size: int) -> int:
    """Return the bytes of the new segment for a rounded request.

    >>> [segment_size(size) // 2**20 for size in (512, 2 * 2**20, 11 * 2**20)]
    [2, 20, 12]
    """
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size < MIN_LARGE:
        return LARGE_SEGMENT
    return -(-size // SMALL_SEGMENT) * SMALL_SEGMENT


def page_of(pool: Pool) -> int:
    """Return the page size of the pool's expandable segments."""
    return SMALL_SEGMENT if pool.is_small else LARGE_SEGMENT


def extent_of(block: Block) -> int:
    """Return the size that a block can grow to by mapping the pages after it."""
    if block.next is None or block.next.mapped:
        return block.size
    return block.size + block.next.size


def is_free_and_mapped(block: Block | None) -> bool:
    """Return whether there is a block, and it is free and mapped."""
    return block is not None and block.is_free and block.mapped
