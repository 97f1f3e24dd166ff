"""`rb.Batcher`: call a function with one item; it runs on batches.

Coroutines await the result, threads get a future; both can be used at the same time.
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
    """Collects items and runs a function on batches whose size follows from a latency target.

    ::

        batcher = rb.Batcher(lambda images: list(model(torch.stack(images))), latency=0.05)
        result = await batcher(image)                  # in a coroutine
        served = batcher.submit(image).result()        # in a thread

    Args:
        function: takes a list of items and returns a list with one result each. It runs in one
            thread and returns when the results are ready (it waits for the GPU). To measure its
            duration it is called on batches of the first item.
        latency: target from an item's arrival to its result: seconds, or text like `"50ms"`.
        sizes: the batch sizes that the function accepts; by default any.
        max_batch: the most items in a batch (memory).
        calibrate_on: an item to calibrate on at once, instead of on the first that arrives.
        on_first: called with the first item, on the engine's thread, instead of `calibrate`, which
            it has to call.
        listeners: notified of every batch and every drop.

    Raises:
        UsageError: if an argument is invalid.
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
        self._waiters: dict[str, ThreadPoolExecutor] = {}  # of streams whose producers block

    async def __call__(self, item: Any, *, stream: str = "", arrived: float | None = None) -> Any:
        """Return the result of one item; arguments and errors as for `served`."""
        return (await self.served(item, stream=stream, arrived=arrived)).result

    async def served(self, item: Any, *, stream: str = "", arrived: float | None = None) -> Served:
        """Return the result of one item with its batch size and latency.

        Args:
            item: an argument of the function.
            stream: its queue; a new name opens a stream with the contract `deadline`.
            arrived: `time.monotonic()` of its arrival, if earlier than now.

        Raises:
            LateError: if it was refused or dropped.
            Exception: what the function raised for it.
        """
        loop = asyncio.get_running_loop()
        outbox = self._outbox_of(loop)
        future: asyncio.Future[Served] = loop.create_future()

        def done(outcome: Served | BaseException) -> None:
            outbox.put(future, outcome)

        if self._must_wait(stream):
            # One thread per stream keeps the order.
            waiter = self._waiters.setdefault(stream, ThreadPoolExecutor(1, "rightbatch-waiter"))
            await loop.run_in_executor(waiter, self.put, stream, item, done, arrived)
        else:
            self.put(stream, item, done, arrived)
        return await future

    def submit(
        self, item: Any, *, stream: str = "", arrived: float | None = None
    ) -> Future[Served]:
        """Queue one item; return a future of its result.

        Args:
            item: an argument of the function.
            stream: its queue; a new name opens a stream with the contract `deadline`.
            arrived: `time.monotonic()` of its arrival, if earlier than now.

        Raises:
            LateError: if it is predicted to be late.
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
        """See `Engine.close_stream`."""
        super().close_stream(name)
        waiter = self._waiters.pop(name, None)
        if waiter is not None:
            waiter.shutdown(wait=False)

    def close(self, timeout: float = 5.0) -> int:
        """See `Engine.close`."""
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
    """Sets the futures of one event loop, which is woken once for many outcomes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outcomes: deque[tuple[asyncio.Future[Served], Served | BaseException]] = deque()
        self._woken = False

    def put(self, future: asyncio.Future[Served], outcome: Served | BaseException) -> None:
        self._outcomes.append((future, outcome))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: outcomes from now on must wake the loop again
        while self._outcomes:
            future, outcome = self._outcomes.popleft()
            if future.done():  # cancelled
                continue
            if isinstance(outcome, BaseException) and (
                isinstance(outcome, StopIteration) or not isinstance(outcome, Exception)
            ):  # a future refuses the former; the latter would end the loop
                name = type(outcome).__name__
                outcome = RuntimeError(f"the function raised {name}: {outcome}")
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
