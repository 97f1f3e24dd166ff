"""What waits: a queue for every stream, its loss contract, and turns by deficit round robin.

Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995) with every item costing 1: in each round
a stream may send as many items as its weight says, and what it may not spend yet is kept.
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
    """One thing that waits; `arrived` and `deadline` are monotonic seconds."""

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
    depth: int | None = None  # None: as many as are in time
    follows_batch: bool = False  # whether the depth is two of the largest batches
    items: deque[Item] = field(default_factory=deque)
    credit: float = 0.0

    @property
    def has_deadline(self) -> bool:
        return self.contract != "every"

    @property
    def is_full(self) -> bool:
        return self.depth is not None and len(self.items) >= self.depth

    def sends_in(self, turns: int) -> int:
        """How many of those that wait leave in so many turns."""
        if turns < 1:
            return 0
        earns = turns - (self.credit >= 1.0)  # it is in the middle of its first turn
        return min(len(self.items), math.floor(self.credit + earns * self.weight))

    def turns_until(self, place: int) -> int:
        """Turns until the item at that place, from 1, leaves."""
        if self.credit >= place:
            return 1
        return math.ceil((place - self.credit) / self.weight) + (self.credit >= 1.0)


class Queues:
    """All streams; `take` is fair between them and keeps the order within each."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self._turns: deque[Stream] = deque()  # those where something waits
        self._urgent = 0
        self._patient = 0

    def __len__(self) -> int:
        """Items that wait."""
        return self._urgent + self._patient

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._streams.values())

    def __contains__(self, name: str) -> bool:
        return name in self._streams

    def __getitem__(self, name: str) -> Stream:
        return self._streams[name]

    @property
    def urgent(self) -> int:
        """Items that have a deadline."""
        return self._urgent

    def add(self, stream: Stream) -> None:
        self._streams[stream.name] = stream

    def remove(self, name: str) -> list[Item]:
        """Forget a stream; what waited there."""
        stream = self._streams.pop(name)
        left = list(stream.items)
        for item in left:
            self._forget(stream, item)
        return left

    def put(self, item: Item) -> Item | None:
        """Let an item wait; the one whose place it took, where its stream keeps the freshest."""
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
        """Whose deadline comes first. Within a stream deadlines (nearly) grow: heads do."""
        heads = (stream.items[0] for stream in self._turns if stream.has_deadline)
        return min(heads, key=lambda item: item.deadline, default=None)

    def oldest(self) -> float:
        """When the item that has waited longest arrived; infinity where nothing waits."""
        return min((stream.items[0].arrived for stream in self._turns), default=NEVER)

    def drop(self, head: Item) -> None:
        """Forget the head of its stream."""
        self._forget(self._streams[head.stream], head)

    def take(self, size: int, *, urgent_only: bool = False) -> list[Item]:
        """The next `size` items (all there are, at most), each stream in its turn."""
        size = min(size, self._urgent if urgent_only else len(self))
        taken: list[Item] = []
        passed = 0  # streams in a row that could send nothing
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
            if not stream.items:  # an idle stream saves nothing up
                stream.credit = 0.0
                self._turns.popleft()
            elif stream.credit < 1.0:
                self._turns.rotate(-1)
            if passed > len(self._turns):
                self._skip_rounds(urgent_only)
        return taken

    def ahead(self, stream: Stream) -> int:
        """Items that leave before one that joins `stream` now would, if no others come."""
        count = len(stream.items)
        turns = stream.turns_until(count + 1)
        for other in self._turns:
            if other is stream:
                turns -= 1  # those behind it have had one turn less
            else:
                count += other.sends_in(turns)
        return count

    def _skip_rounds(self, urgent_only: bool) -> None:
        """As many rounds at once as the first that may send again needs."""
        waiting = [s for s in self._turns if s.has_deadline or not urgent_only]
        rounds = min(math.ceil((1.0 - s.credit) / s.weight) for s in waiting) - 1
        for stream in waiting:
            stream.credit += max(rounds, 0) * stream.weight

    def _forget(self, stream: Stream, item: Item) -> None:
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
