"""Blocks of memory, the pools of free ones, and how requests are rounded."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

MIN_BLOCK = 512
SMALL_SIZE = 2**20
"""Requests up to this, rounded, come from the small pool."""
SMALL_SEGMENT = 2 * 2**20
LARGE_SEGMENT = 20 * 2**20
MIN_LARGE = 10 * 2**20
"""Requests from this on get a segment of their own size, in steps of 2 MiB."""
ADDRESS_BITS = 52
ADDRESSES = (1 << ADDRESS_BITS) - 1


class Block:
    """A piece of a segment; `previous` and `next` are its neighbours in it."""

    __slots__ = ("address", "age", "is_free", "mapped", "next", "pool", "previous", "size", "uses")

    def __init__(self, address: int, size: int, pool: Pool) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.previous: Block | None = None
        self.next: Block | None = None
        self.is_free = True
        self.mapped = True
        self.age = 0  # the count of searches when it was freed
        self.uses: set[int] | None = None  # streams that `record_stream` named


class Pool:
    """The free blocks of one size class and stream, smallest first, lowest address first.

    `order` holds size and address in one integer, which `bisect` compares fastest.
    """

    __slots__ = ("blocks", "clock", "is_small", "order", "stream", "unmapped")

    def __init__(self, is_small: bool, stream: int, clock: list[int]) -> None:
        self.is_small = is_small
        self.stream = stream
        self.order: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: list[tuple[int, Block]] = []  # expandable: address ranges without pages
        self.clock = clock  # one count of searches for all streams' pools of this class

    def put(self, block: Block) -> None:
        block.is_free = True
        block.age = self.clock[0]
        self.blocks[block.address] = block
        insort(self.order, (block.size << ADDRESS_BITS) | block.address)

    def take(self, block: Block) -> None:
        del self.order[bisect_left(self.order, (block.size << ADDRESS_BITS) | block.address)]
        del self.blocks[block.address]
        block.is_free = False

    def first_of(self, size: int) -> Iterator[Block]:
        """Blocks of at least `size`, in the order of search."""
        for key in self.order[bisect_left(self.order, size << ADDRESS_BITS) :]:
            yield self.blocks[key & ADDRESSES]


def round_size(size: int, divisions: int = 0) -> int:
    """Bytes that a request of `size` takes at least.

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
    """Bytes of the new segment for a rounded request.

    >>> [segment_size(size) // 2**20 for size in (512, 2 * 2**20, 11 * 2**20)]
    [2, 20, 12]
    """
    if size <= SMALL_SIZE:
        return SMALL_SEGMENT
    if size < MIN_LARGE:
        return LARGE_SEGMENT
    return -(-size // SMALL_SEGMENT) * SMALL_SEGMENT


def page_of(pool: Pool) -> int:
    return SMALL_SEGMENT if pool.is_small else LARGE_SEGMENT


def extent_of(block: Block) -> int:
    grows = block.next is not None and not block.next.mapped
    return block.size + (block.next.size if grows and block.next is not None else 0)


def is_free_and_mapped(block: Block | None) -> bool:
    return block is not None and block.is_free and block.mapped
