"""What people write themselves: a queue, a thread, batches of a fixed size and a fixed wait.

With a size of 1 and no wait it is batch 1. First in, first out; nothing is dropped.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rightbatch._serve.engine.records import Served

Done = Callable[[Served | BaseException], None]


class FixedBatcher:
    """Runs a batch when `size` items wait, or when the first of them has waited for `wait` s.

    Args:
        function: a list of items in, a list of results out.
        size: of a batch, at most.
        wait: seconds.
        latency: the target that a load is counted by; the batcher does not know it.
    """

    def __init__(
        self, function: Callable[[list[Any]], list[Any]], size: int, wait: float, latency: float
    ) -> None:
        self.latency = latency
        self._function, self._size, self._wait = function, size, wait
        self._waiting: deque[tuple[Any, Done, float]] = deque()
        self._came = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="fixed-batcher", daemon=True)
        self._thread.start()

    def put(self, stream: str, item: Any, done: Done, arrived: float | None = None) -> None:
        with self._came:
            self._waiting.append((item, done, time.monotonic() if arrived is None else arrived))
            self._came.notify()

    def close(self) -> None:
        """Ends at once; what waits is dropped silently."""
        with self._came:
            self._closing = True
            self._came.notify()
        self._thread.join()

    def clear(self) -> None:
        """Forget what waits, so that the next load finds it idle."""
        with self._came:
            self._waiting.clear()

    def _work(self) -> None:
        while batch := self._next():
            results = self._function([item for item, _, _ in batch])
            now = time.monotonic()
            for (_, done, arrived), result in zip(batch, results, strict=True):
                latency = now - arrived
                done(Served(result, len(batch), latency, latency <= self.latency, "fixed"))

    def _next(self) -> list[tuple[Any, Done, float]]:
        with self._came:
            while not self._closing:
                if len(self._waiting) >= self._size:
                    break
                left = (
                    self._waiting[0][2] + self._wait - time.monotonic() if self._waiting else None
                )
                if left is not None and left <= 0:
                    break
                self._came.wait(left)
            if self._closing:
                return []
            return [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
