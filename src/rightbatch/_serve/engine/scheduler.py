"""Choose the items of the next batch from the time, the queues and the service table.

When the device is free and items wait, a batch starts at once: waiting gains nothing, since the
next batch grows while this one runs (the best policy that waits is a control limit that saves
energy, not time: Xu et al., arXiv 2301.12865). The size is at most the largest n with
2 s(n) <= latency target, since an item waits for one batch at most and then for its own. An item
that would be late even in the batch that starts now is dropped. A batch is not made smaller to save
it: smaller batches serve fewer items per second and make later ones late.

The durations are known from batches that ran. If all items are predicted to be late, none would run
and the prediction could never change; so one item is run from time to time all the same, a probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rightbatch._serve.engine.queues import NEVER, Item, Queues, Stream
from rightbatch._serve.engine.records import Cause, Contract
from rightbatch._serve.engine.service_times import ServiceTable

_LIMIT_EVERY = 16  # batches between two updates of the largest size within the target
_PLAN_EVERY = 512  # batches between two full plans
_MIN_GAIN = 1.005  # a batch must serve this many times the items per second of half its size
_PROBE_EVERY = 1.0  # seconds at most without a batch, if items come
_MUCH_FASTER = 0.8  # a probe that took less than this share of what was expected restarts the level
_PATIENT_WEIGHT = 0.1  # a file takes what cameras leave, and at least a tenth of their share


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A batch to run now.

    `ran_as` is its size after padding, `seconds` its expected duration. A probe is predicted to be
    late.
    """

    items: list[Item]
    ran_as: int
    seconds: float
    reason: str
    is_probe: bool = False


class Scheduler:
    """Queues items and chooses the next batch. It has no clock: `now` is an argument.

    Args:
        table: seconds by batch size.
        latency: the target in seconds, from arrival to result.
        sizes: the batch sizes that the model accepts, if it was exported with fixed ones.
        max_batch: the most items in a batch (memory).
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
        self.overhead = 0.0  # seconds from an item's arrival until it is put here
        self._allowed = tuple(sorted(sizes)) if sizes else None
        self._max_batch = max_batch
        self._batches = 0
        self._best: list[int] = []
        self._within = 1
        self._probe_at: float | None = None
        self.plan()

    @property
    def largest(self) -> int:
        """The largest batch that it forms now."""
        return self._best[self._within]

    def plan(self) -> None:
        """Recompute the best size for each number of waiting items from the table."""
        most = self.table.largest
        if self._max_batch is not None:
            most = min(most, self._max_batch)
        if self._allowed is not None:
            most = min(most, self._allowed[-1])
        # Index: number of waiting items; value: the size with the most items per second.
        self._best = [0, 1]
        for waiting in range(2, most + 1):
            before, half = self._best[-1], self._best[waiting // 2]
            rate = self._rate(waiting)
            is_faster = rate > self._rate(before) and rate > _MIN_GAIN * self._rate(half)
            self._best.append(waiting if is_faster else before)
        self._update_limit()

    def _update_limit(self) -> None:
        """Find the largest n with 2 s(n) <= target, s being the 99% quantile."""
        # A batch below the smallest allowed size takes as long as that size.
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

    def use_table(self, table: ServiceTable) -> None:
        """Replace the service table."""
        self.table = table
        self.plan()

    def limit_batch(self, max_batch: int) -> None:
        """Set the most items in a batch."""
        self._max_batch = max_batch
        self.plan()

    def open(
        self,
        name: str,
        contract: Contract = "deadline",
        weight: float | None = None,
        depth: int | None = None,
    ) -> None:
        """Add a stream. The default depth is two batches for `every` and 1 for `freshest`."""
        if weight is None:
            weight = _PATIENT_WEIGHT if contract == "every" else 1.0
        follows = depth is None and contract == "every"
        if depth is None:
            depth = {"every": 2 * self.largest, "freshest": 1, "deadline": None}[contract]
        self.queues.add(Stream(name, contract, weight, depth, follows))

    def put(self, item: Item) -> Item | None:
        """Queue an item and set its deadline; return the item that it replaced, if any."""
        stream = self.queues[item.stream]
        item.deadline = item.arrived + self.latency if stream.has_deadline else NEVER
        return self.queues.put(item)

    def lateness(self, name: str, now: float, free_at: float, arrived: float) -> float:
        """Return by how many seconds an item that arrives now is predicted to be late; 0 if not.

        After that many seconds it would be in time, if no other item arrived.
        """
        ahead = self.queues.ahead(self.queues[name])
        full, place = divmod(ahead, self.largest)
        queued = min(place + 1 + len(self.queues) - ahead, self.largest)
        finish = max(free_at, now) + full * self._seconds(self.largest) + self._seconds(queued)
        return max(0.0, finish - (arrived + self.latency))

    def is_probe_due(self, now: float) -> bool:
        """Whether to run an item that is predicted to be late, since nothing else has run."""
        if self._probe_at is None:
            self._probe_at = now + self._probe_pause(0.0)
        return now >= self._probe_at

    def next(self, now: float) -> tuple[Dispatch | None, list[tuple[Item, Cause]]]:
        """Return the batch to start on a free device, if any, and the items dropped."""
        dropped: list[tuple[Item, Cause]] = []
        queues = self.queues
        while waiting := len(queues):
            size = self._size(waiting)
            seconds = self._seconds(size)
            head = queues.earliest()
            urgent_only = False
            if head is not None and now + seconds > head.deadline and queues.urgent < waiting:
                # Leave out items without a deadline: they must not make others late.
                urgent_only = True
                size = self._size(queues.urgent)
                seconds = self._seconds(size)
            is_probe = False
            if head is not None and now + seconds > head.deadline:
                is_probe = waiting == 1 and self.is_probe_due(now)
                if not is_probe:
                    queues.drop(head)
                    dropped.append((head, "late"))
                    continue
            items = queues.take(size, urgent_only=urgent_only)
            reason = self._reason(size, queues.urgent + size if urgent_only else waiting)
            if is_probe:
                reason = "a probe: all items are predicted to be late"
            self._probe_at = now + seconds + self._probe_pause(seconds)
            return Dispatch(items, self.padded(size), seconds, reason, is_probe), dropped
        return None, dropped

    def observe(
        self, ran_as: int, seconds: float, *, now: float | None = None, is_probe: bool = False
    ) -> None:
        """Update the service table with a batch that ran, and that ended `now`."""
        if now is not None:
            self._probe_at = now + self._probe_pause(seconds)
        if is_probe and seconds < _MUCH_FASTER * self.table.seconds(ran_as):
            self.table.restart(ran_as, seconds)
            self._update_limit()
        else:
            self.table.observe(ran_as, seconds)
        self._batches += 1
        if self._batches % _PLAN_EVERY == 0:
            self.plan()
        elif self._batches % _LIMIT_EVERY == 0:
            self._update_limit()

    def padded(self, size: int) -> int:
        """Return the size that `size` items are padded to."""
        if self._allowed is None:
            return size
        return next((allowed for allowed in self._allowed if allowed >= size), self._allowed[-1])

    def rate(self) -> float:
        """Return the items per second of the largest batches, one after the other."""
        return self._rate(self.largest)

    def _probe_pause(self, seconds: float) -> float:
        """Return the seconds until the next probe: the device rests as long as a probe takes."""
        return min(max(self.latency, seconds), _PROBE_EVERY)

    def _size(self, waiting: int) -> int:
        return self._best[min(waiting, self._within)]

    def _seconds(self, size: int) -> float:
        return self.table.seconds(self.padded(size))

    def _rate(self, size: int) -> float:
        return size / self._seconds(size)

    def _reason(self, size: int, waiting: int) -> str:
        if size == waiting:
            return "all waiting items"
        if waiting <= self._within:
            return "most items per second of the waiting ones"
        if self.largest < self._within:
            return "larger batches do not serve more items per second"
        if self._max_batch is not None and size == self._max_batch:
            return "limited by max_batch or memory"
        if self._allowed is not None and size == self._allowed[-1]:
            return "the model's largest batch size"
        return f"limited by the latency target of {self.latency * 1000:g} ms"
