"""Which items go now: a function of the time, the queues and the service table, and of no clock.

Where the device is free and something waits, it goes: waiting for more gains nothing, since a batch
grows by itself while the one before it runs (the best policy that waits is a control limit that
saves energy, not time: Xu et al., arXiv 2301.12865). Its size is at most the largest n with
2 s(n) <= latency target: an item waits for one batch at most, then for its own. An item that would
be late even in the batch that starts now is dropped; a batch is not made smaller to save it, since
smaller batches serve fewer items a second and make the next ones late.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rightbatch._serve.engine.queues import NEVER, Item, Queues, Stream
from rightbatch._serve.engine.records import Cause, Contract
from rightbatch._serve.engine.service_times import ServiceTable

_LOOK = 16  # batches between two looks at what the target allows,
_PLAN = 512  # and between two plans, since the table was refined
_PAYS = 1.005  # so many more items a second than half of it must a batch serve to be preferred
_PATIENT_WEIGHT = 0.1  # a file takes what cameras leave, and a tenth of their share at the least


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A batch to run now: `ran_as` is the size that the model is given, padding included."""

    items: list[Item]
    ran_as: int
    seconds: float
    reason: str


class Scheduler:
    """Streams, what waits in them, and what goes next. Knows no clock: every call says `now`.

    Args:
        table: seconds by batch size.
        latency: the target in seconds, from arrival to result.
        sizes: the only sizes that the model takes, where it was exported with fixed ones.
        max_batch: never more items than this (memory).
    """

    def __init__(
        self,
        table: ServiceTable,
        latency: float,
        *,
        sizes: Sequence[int] | None = None,
        max_batch: int | None = None,
    ) -> None:
        self.table = table
        self.latency = latency
        self.queues = Queues()
        self.overhead = 0.0  # seconds of an item before it is put here
        self._allowed = tuple(sorted(sizes)) if sizes else None
        self._max_batch = max_batch
        self._batches = 0
        self._best: list[int] = []
        self._within = 1
        self.plan()

    @property
    def largest(self) -> int:
        """The largest batch that it will form now."""
        return self._best[self._within]

    def plan(self) -> None:
        """Choose the sizes anew from the table, as it is now."""
        most = self.table.largest
        if self._max_batch is not None:
            most = min(most, self._max_batch)
        if self._allowed is not None:
            most = min(most, self._allowed[-1])
        # By the number that waits: the size that serves most items a second.
        self._best = [0, 1]
        for waiting in range(2, most + 1):
            before, half = self._best[-1], self._best[waiting // 2]
            rate = self._rate(waiting)
            pays = rate > self._rate(before) and rate > _PAYS * self._rate(half)
            self._best.append(waiting if pays else before)
        self._look()

    def _look(self) -> None:
        """How many the latency target allows: 2 s(n) <= target, in 99 of 100 batches."""
        # Fewer than the smallest size that the model takes need as long as that one.
        smallest = self._allowed[0] if self._allowed else 1
        self._within = max(1, min(smallest, len(self._best) - 1))
        above = len(self._best)
        while above - self._within > 1:
            size = (self._within + above) // 2
            slow = self.table.slow_seconds(self.padded(size))
            if 2 * slow + self.overhead <= self.latency:
                self._within = size
            else:
                above = size
        for stream in self.queues:
            if stream.follows_batch:
                stream.depth = 2 * self.largest

    def adopt(self, table: ServiceTable) -> None:
        """Go by another table from now on."""
        self.table = table
        self.plan()

    def cap(self, max_batch: int) -> None:
        """Form no larger batches from now on."""
        self._max_batch = max_batch
        self.plan()

    def open(
        self,
        name: str,
        contract: Contract = "deadline",
        weight: float | None = None,
        depth: int | None = None,
    ) -> None:
        """Add a stream. Without a depth, `every` holds two batches and `freshest` one item."""
        if weight is None:
            weight = _PATIENT_WEIGHT if contract == "every" else 1.0
        follows = depth is None and contract == "every"
        if depth is None:
            depth = {"every": 2 * self.largest, "freshest": 1, "deadline": None}[contract]
        self.queues.add(Stream(name, contract, weight, depth, follows))

    def put(self, item: Item) -> Item | None:
        """Let an item wait, until its deadline if it has one; the item that it replaced."""
        stream = self.queues[item.stream]
        item.deadline = item.arrived + self.latency if stream.has_deadline else NEVER
        return self.queues.put(item)

    def lateness(self, name: str, now: float, free_at: float, arrived: float) -> float:
        """By how many seconds an item that comes now would be late, as predicted; 0 if not.

        So much later it would not be, if nothing else came.
        """
        ahead = self.queues.ahead(self.queues[name])
        full, place = divmod(ahead, self.largest)
        queued = min(place + 1 + len(self.queues) - ahead, self.largest)
        finish = max(free_at, now) + full * self._seconds(self.largest) + self._seconds(queued)
        return max(0.0, finish - (arrived + self.latency))

    def next(self, now: float) -> tuple[Dispatch | None, list[tuple[Item, Cause]]]:
        """What goes now, on a device that is free, and what is dropped for it."""
        dropped: list[tuple[Item, Cause]] = []
        queues = self.queues
        while waiting := len(queues):
            size = self._size(waiting)
            seconds = self._seconds(size)
            head = queues.earliest()
            urgent_only = False
            if head is not None and now + seconds > head.deadline and queues.urgent < waiting:
                # What has no deadline makes nobody late.
                urgent_only = True
                size = self._size(queues.urgent)
                seconds = self._seconds(size)
            if head is not None and now + seconds > head.deadline:
                queues.drop(head)
                dropped.append((head, "late"))
                continue
            items = queues.take(size, urgent_only=urgent_only)
            reason = self._reason(size, queues.urgent + size if urgent_only else waiting)
            return Dispatch(items, self.padded(size), seconds, reason), dropped
        return None, dropped

    def observe(self, ran_as: int, seconds: float) -> None:
        """Learn from a batch that ran."""
        self.table.observe(ran_as, seconds)
        self._batches += 1
        if self._batches % _PLAN == 0:
            self.plan()
        elif self._batches % _LOOK == 0:
            self._look()

    def padded(self, size: int) -> int:
        """The size that the model is given for so many items."""
        if self._allowed is None:
            return size
        return next((allowed for allowed in self._allowed if allowed >= size), self._allowed[-1])

    def rate(self) -> float:
        """Items a second in its largest batches, without a pause."""
        return self._rate(self.largest)

    def _size(self, waiting: int) -> int:
        return self._best[min(waiting, self._within)]

    def _seconds(self, size: int) -> float:
        return self.table.seconds(self.padded(size))

    def _rate(self, size: int) -> float:
        return size / self._seconds(size)

    def _reason(self, size: int, waiting: int) -> str:
        if size == waiting:
            return "all that waited"
        if waiting <= self._within:
            return "serves most a second of those that waited"
        if self.largest < self._within:
            return "larger batches serve no more a second"
        if self._max_batch is not None and size == self._max_batch:
            return "the most that memory allows"
        if self._allowed is not None and size == self._allowed[-1]:
            return "the most that the model takes"
        return f"the most that {self.latency * 1000:g} ms allow"
