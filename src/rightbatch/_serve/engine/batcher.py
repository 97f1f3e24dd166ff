"""`rb.Batcher`: a function that is called with one item, and runs on batches.

From coroutines it is awaited, from threads it gives futures; both may come at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from rightbatch._serve.engine.calibration import Function
from rightbatch._serve.engine.engine import Engine
from rightbatch._serve.engine.records import Listener, Served


class Batcher(Engine):
    """Calls a function on batches, whose sizes follow from a latency target.

    ::

        batcher = rb.Batcher(lambda images: list(model(torch.stack(images))), latency=0.05)
        result = await batcher(image)                  # in a coroutine
        served = batcher.submit(image).result()        # in a thread

    Args:
        function: a list of items in, a list with a result for each out. It runs in one thread, and
            returns when the results are there (a GPU has been waited for). It is called on batches
            of the first item when that comes, to learn what they take.
        latency: the target, from an item's arrival to its result: seconds, or text like `"50ms"`.
        sizes: the only batch sizes that it takes, if not any.
        max_batch: the most items of a batch (memory).
        calibrate_on: an item to calibrate on at once, instead of on the first that comes.
        on_first: is called with the first item, in the engine's thread, in place of `calibrate`,
            and calls that.
        listeners: who hears of every batch and every drop.

    Raises:
        UsageError: if an argument cannot be meant.
    """

    def __init__(
        self,
        function: Function,
        latency: float | str,
        *,
        sizes: Sequence[int] | None = None,
        max_batch: int | None = None,
        calibrate_on: Any = None,
        on_first: Callable[[Any], object] | None = None,
        listeners: Sequence[Listener] = (),
    ) -> None:
        super().__init__(
            function,
            latency,
            sizes=sizes,
            max_batch=max_batch,
            calibrate_on=calibrate_on,
            on_first=on_first,
            listeners=listeners,
        )
        self._outboxes: dict[asyncio.AbstractEventLoop, _Outbox] = {}
        self._waiters: dict[str, ThreadPoolExecutor] = {}  # of streams whose bringers wait

    async def __call__(self, item: Any, *, stream: str = "", arrived: float | None = None) -> Any:
        """The result for one item; arguments and errors are those of `served`."""
        return (await self.served(item, stream=stream, arrived=arrived)).result

    async def served(self, item: Any, *, stream: str = "", arrived: float | None = None) -> Served:
        """What becomes of one item.

        Args:
            item: what the function takes.
            stream: its queue; a new name opens one that keeps deadlines.
            arrived: `time.monotonic()` of its arrival, where that was earlier than now.

        Raises:
            LateError: if it was refused or dropped, since it would have been late.
            Exception: what the function raised for it.
        """
        loop = asyncio.get_running_loop()
        outbox = self._outbox_of(loop)
        future: asyncio.Future[Served] = loop.create_future()

        def done(outcome: Served | BaseException) -> None:
            outbox.put(future, outcome)

        if self._must_wait(stream):
            # In one thread for each stream, so that the order stays.
            waiter = self._waiters.setdefault(stream, ThreadPoolExecutor(1, "rightbatch-waiter"))
            await loop.run_in_executor(waiter, self.put, stream, item, done, arrived)
        else:
            self.put(stream, item, done, arrived)
        return await future

    def submit(
        self, item: Any, *, stream: str = "", arrived: float | None = None
    ) -> Future[Served]:
        """A future of what becomes of one item.

        Args:
            item: what the function takes.
            stream: its queue; a new name opens one that keeps deadlines.
            arrived: `time.monotonic()` of its arrival, where that was earlier than now.

        Raises:
            LateError: if it would be late, as predicted.
        """
        future: Future[Served] = Future()

        def done(outcome: Served | BaseException) -> None:
            if not future.set_running_or_notify_cancel():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.put(stream, item, done, arrived)
        return future

    def close_stream(self, name: str) -> None:
        """As `Engine.close_stream`."""
        super().close_stream(name)
        waiter = self._waiters.pop(name, None)
        if waiter is not None:
            waiter.shutdown(wait=False)

    def close(self, timeout: float = 5.0) -> int:
        """As `Engine.close`."""
        left = super().close(timeout)
        while self._waiters:
            self._waiters.popitem()[1].shutdown(wait=False)
        return left

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Batcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def _outbox_of(self, loop: asyncio.AbstractEventLoop) -> _Outbox:
        outbox = self._outboxes.get(loop)
        if outbox is None:
            for other in [other for other in list(self._outboxes) if other.is_closed()]:
                self._outboxes.pop(other, None)
            outbox = self._outboxes[loop] = _Outbox(loop)
        return outbox

    def _must_wait(self, stream: str) -> bool:
        with self._lock:
            queues = self._scheduler.queues
            return stream in queues and queues[stream].contract == "every"


class _Outbox:
    """Outcomes for the futures of one event loop, which is woken once for many."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outcomes: deque[tuple[asyncio.Future[Served], Served | BaseException]] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[Served], outcome: Served | BaseException) -> None:
        self._outcomes.append((future, outcome))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop has ended, and its futures with it
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what comes from now on wakes again
        while self._outcomes:
            future, outcome = self._outcomes.popleft()
            if future.done():  # cancelled
                continue
            if isinstance(outcome, BaseException) and (
                isinstance(outcome, StopIteration) or not isinstance(outcome, Exception)
            ):  # which no future takes, or which would end the loop
                name = type(outcome).__name__
                outcome = RuntimeError(f"the function raised {name}: {outcome}")
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
