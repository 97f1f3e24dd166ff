"""A queue for every stream, its loss contract, and deficit round robin between them.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) with a cost of 1 for every item: in each
round a stream may send as many items as its weight, and the unused part of a credit is kept.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rightbatch._serve.engine.records import Contract

NEVER = math.inf


@dataclass(slots=True, eq=False)
class Item:
    """An item that waits; `arrived` and `deadline` are monotonic seconds."""

    stream: str
    payload: Any
    arrived: float
    deadline: float
    done: Callable[[Any], None] | None = None


@dataclass(slots=True, eq=False)
class Stream:
    """The items of one source, first in, first out."""

    name: str
    contract: Contract
    weight: float
    depth: int | None = None  # most items that wait; None: no limit
    follows_batch: bool = False  # whether the depth is twice the largest batch
    items: deque[Item] = field(default_factory=deque)
    credit: float = 0.0

    @property
    def has_deadline(self) -> bool:
        return self.contract != "every"

    @property
    def is_full(self) -> bool:
        return self.depth is not None and len(self.items) >= self.depth

    def sends_in(self, turns: int) -> int:
        """Return how many of the waiting items leave within `turns` turns."""
        if turns < 1:
            return 0
        refills = turns - (self.credit >= 1.0)  # the first turn has begun, its credit was added
        return min(len(self.items), math.floor(self.credit + refills * self.weight))

    def turns_until(self, place: int) -> int:
        """Return the turns until the item at `place` (from 1) leaves."""
        if self.credit >= place:
            return 1
        return math.ceil((place - self.credit) / self.weight) + (self.credit >= 1.0)


class Queues:
    """The queues of all streams; `take` is fair between streams and first-in first-out in each."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._turns: deque[Stream] = deque()  # streams with waiting items
        self._urgent = 0
        self._patient = 0

    def __len__(self) -> int:
        """Return the number of waiting items."""
        return self._urgent + self._patient

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    def __contains__(self, name: str) -> bool:
        return name in self._streams

    def __getitem__(self, name: str) -> Stream:
        return self._streams[name]

    @property
    def urgent(self) -> int:
        """Waiting items that have a deadline."""
        return self._urgent

    def add(self, stream: Stream) -> None:
        self._streams[stream.name] = stream

    def remove(self, name: str) -> list[Item]:
        """Remove a stream; return the items that waited in it."""
        stream = self._streams.pop(name)
        items = list(stream.items)
        for item in items:
            self._discard(stream, item)
        return items

    def put(self, item: Item) -> Item | None:
        """Append an item; return the item that it replaced, in a full `freshest` stream."""
        stream = self._streams[item.stream]
        replaced = None
        if stream.contract == "freshest" and stream.is_full:
            replaced = stream.items.popleft()
        elif not stream.items:
            self._turns.append(stream)
        stream.items.append(item)
        if replaced is None:
            self._count(stream, 1)
        return replaced

    def earliest(self) -> Item | None:
        """Return the item with the earliest deadline, or None.

        Only heads are compared: within a stream deadlines grow, or nearly.
        """
        heads = (stream.items[0] for stream in self._turns if stream.has_deadline)
        return min(heads, key=lambda item: item.deadline, default=None)

    def oldest(self) -> float:
        """Return the earliest arrival of all waiting items; infinity if there are none."""
        return min((stream.items[0].arrived for stream in self._turns), default=NEVER)

    def drop(self, head: Item) -> None:
        """Remove an item that is the head of its stream."""
        self._discard(self._streams[head.stream], head)

    def take(self, size: int, *, urgent_only: bool = False) -> list[Item]:
        """Remove and return the next items, at most `size`, by deficit round robin."""
        size = min(size, self._urgent if urgent_only else len(self))
        taken: list[Item] = []
        passed = 0  # consecutive streams that could send nothing
        while len(taken) < size:
            stream = self._turns[0]
            if urgent_only and not stream.has_deadline:
                self._turns.rotate(-1)
                continue
            if stream.credit < 1.0:
                stream.credit += stream.weight
            before = len(taken)
            while stream.items and stream.credit >= 1.0 and len(taken) < size:
                stream.credit -= 1.0
                item = stream.items.popleft()
                self._count(stream, -1)
                taken.append(item)
            passed = 0 if len(taken) > before else passed + 1
            if not stream.items:  # an idle stream accumulates no credit
                stream.credit = 0.0
                self._turns.popleft()
            elif stream.credit < 1.0:
                self._turns.rotate(-1)
            if passed > len(self._turns):
                self._skip_rounds(urgent_only)
        return taken

    def ahead(self, stream: Stream) -> int:
        """Return how many items leave before one that joins `stream` now, if no others arrive."""
        count = len(stream.items)
        turns = stream.turns_until(count + 1)
        for other in self._turns:
            if other is stream:
                turns -= 1  # the streams behind it have one turn less
            else:
                count += other.sends_in(turns)
        return count

    def _skip_rounds(self, urgent_only: bool) -> None:
        """Add the credit of all rounds until a stream may send again, at once."""
        waiting = [s for s in self._turns if s.has_deadline or not urgent_only]
        rounds = min(math.ceil((1.0 - s.credit) / s.weight) for s in waiting) - 1
        for stream in waiting:
            stream.credit += max(rounds, 0) * stream.weight

    def _discard(self, stream: Stream, item: Item) -> None:
        stream.items.remove(item)
        self._count(stream, -1)
        if not stream.items:
            stream.credit = 0.0
            self._turns.remove(stream)

    def _count(self, stream: Stream, change: int) -> None:
        if stream.has_deadline:
            self._urgent += change
        else:
            self._patient += change
