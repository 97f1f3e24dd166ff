"""The engine: what many streams bring, run in batches under one latency target.

A thread of its own runs the function; what goes next is the scheduler's decision. On the first item
it calibrates: it runs growing batches of that item to learn what they take.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rightbatch._device import is_out_of_memory
from rightbatch._errors import LateError, UsageError
from rightbatch._serve.engine import calibration
from rightbatch._serve.engine.calibration import Calibration, Function
from rightbatch._serve.engine.counters import Counters
from rightbatch._serve.engine.queues import NEVER, Item
from rightbatch._serve.engine.records import BatchRecord, Cause, Contract, Listener, Served
from rightbatch._serve.engine.scheduler import Dispatch, Scheduler
from rightbatch._serve.engine.service_times import ServiceTable
from rightbatch._units import parse_seconds

Done = Callable[[Served | BaseException], None]
_LOG = logging.getLogger("rightbatch")
_OVERHEAD = 0.25  # of the target, at most, for what an item takes before it is put
_CONTRACTS = ("every", "freshest", "deadline")
_WHY = {
    "late": "it would have been late in the batch that started",
    "refused": "it would be late, as predicted from what waits",
    "replaced": "a fresher one came",
    "full": "its queue was full",
    "closing": "the server is closing",
}


class Engine:
    """Batches of what its streams bring, run one after the other on a thread of its own."""

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
        if not callable(function):
            raise UsageError(f"a Batcher calls a function on lists, got {type(function).__name__}")
        if sizes is not None and (not sizes or min(sizes) < 1):
            raise UsageError(f"sizes are whole numbers of at least 1, got {list(sizes)}")
        if max_batch is not None and max_batch < 1:
            raise UsageError(f"max_batch is at least 1, got {max_batch}")
        if sizes is not None and max_batch is not None:
            sizes = [size for size in sizes if size <= max_batch]
            if not sizes:
                raise UsageError(f"none of the model's sizes is within max_batch={max_batch}")
        self.latency = parse_seconds(latency)
        self.counters = Counters()
        self.calibration: Calibration | None = None
        self._function = function
        self._sizes = sizes
        self._max_batch = max_batch
        self._on_first = on_first or self.calibrate
        self._listeners: list[Listener] = [self.counters, *listeners]
        # Until it is calibrated the table says that nothing takes any time.
        self._scheduler = Scheduler(
            ServiceTable({1: [1e-9]}), self.latency, sizes=sizes, max_batch=max_batch
        )
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)  # an item, or the end
        self._left = threading.Condition(self._lock)  # items, so that there is room
        self._free_at = 0.0
        self._running = 0  # items that the function has now
        self._closing = False
        self._stopped = False
        self._thread: threading.Thread | None = None
        if calibrate_on is not None:
            self.calibrate(calibrate_on)

    def put(self, stream: str, item: Any, done: Done, arrived: float | None = None) -> None:
        """Let an item wait; `done` hears what became of it, on any thread, and is quick.

        A stream that keeps `every` item waits here until there is room.

        Raises:
            LateError: if it would be late as predicted, or the batcher is closing.
        """
        with self._lock:
            now = time.monotonic()
            if self._closing:
                raise self._refusal(stream, "closing")
            scheduler = self._scheduler
            if stream not in scheduler.queues:
                scheduler.open(stream)
                self.counters.open(stream)
            queue = scheduler.queues[stream]
            self._start()
            if queue.contract == "every":
                while queue.is_full and not self._closing and stream in scheduler.queues:
                    self._left.wait()
                if self._closing or stream not in scheduler.queues:
                    raise self._refusal(stream, "closing")
            waiting = Item(stream, item, now if arrived is None else arrived, NEVER, done)
            if queue.contract == "deadline":
                if queue.is_full:
                    raise self._refusal(stream, "full")
                if self.calibration is not None:
                    late = scheduler.lateness(stream, now, self._free_at, waiting.arrived)
                    if late > 0:
                        raise self._refusal(stream, "refused", late)
            # Follows what is seldom exceeded. What is late already can be saved by no size, and a
            # slow sender does not make everybody's batches small.
            if arrived is not None and now - arrived < self.latency:
                surprise = min(now - arrived, _OVERHEAD * self.latency) - scheduler.overhead
                scheduler.overhead += surprise * (0.05 if surprise > 0 else 0.01)
            replaced = scheduler.put(waiting)
            if self.calibration is None:
                waiting.deadline = NEVER  # nobody knew what it would take
            self._came.notify()
        if replaced is not None:
            self._drop(replaced, "replaced")

    def open_stream(
        self,
        name: str,
        *,
        contract: Contract = "deadline",
        weight: float | None = None,
        depth: int | None = None,
    ) -> None:
        """Give a stream its loss contract and its weight.

        Args:
            name: of the stream.
            contract: `every` loses nothing and makes who brings it wait, `freshest` keeps the
                newest, `deadline` keeps each until it would be late.
            weight: its share where the device is short, relative to the others. Default: 1, and 0.1
                for `every`, which takes what the others leave.
            depth: the most items that wait. Default: two batches, one, and no limit.

        Raises:
            UsageError: if it is open already, or an argument cannot be meant.
        """
        if contract not in _CONTRACTS:
            raise UsageError(
                f"{contract!r} is no contract; the known ones: {', '.join(_CONTRACTS)}"
            )
        if weight is not None and not 0.001 <= weight <= 1000:
            raise UsageError(f"a weight is from 0.001 to 1000, got {weight}")
        if depth is not None and depth < 1:
            raise UsageError(f"a depth is at least 1, got {depth}")
        with self._lock:
            if name in self._scheduler.queues:
                raise UsageError(f"there is a stream {name!r} already; choose another name")
            self._scheduler.open(name, contract, weight, depth)
            self.counters.open(name)

    def close_stream(self, name: str) -> None:
        """Forget a stream; what waits there is dropped.

        Raises:
            UsageError: if there is none of that name.
        """
        with self._lock:
            if name not in self._scheduler.queues:
                known = ", ".join(sorted(s.name for s in self._scheduler.queues)) or "none"
                raise UsageError(f"there is no stream {name!r}; there are: {known}")
            left = self._scheduler.queues.remove(name)
            self._left.notify_all()
        for item in left:
            self._drop(item, "closing")
        self.counters.forget(name)

    def cap(self, max_batch: int) -> None:
        """Form no larger batches from now on (memory)."""
        with self._lock:
            self._max_batch = min(max_batch, self._max_batch or max_batch)
            self._scheduler.cap(self._max_batch)

    def listen(self, listener: Listener) -> None:
        """Let one more hear of every batch and every drop, from now on."""
        self._listeners.append(listener)

    def calibrate(self, item: Any, show: Callable[[str], None] = lambda text: None) -> Calibration:
        """Learn what batches of an item take, on the thread that calls.

        Raises:
            Exception: what the function raised, where even one item fails.
            LateError: if the batcher is closed meanwhile.
        """

        def told(text: str) -> None:
            if self._stopped:
                raise LateError(_WHY["closing"], cause="closing")
            show(text)

        samples, stopped_by = calibration.measure(
            self._function,
            item,
            self.latency,
            sizes=self._sizes,
            max_batch=self._max_batch,
            is_out_of_memory=is_out_of_memory,
            show=told,
        )
        if stopped_by in ("memory", "failure"):
            self._max_batch = max(samples)
        told("what fits")
        result = calibration.estimate_capacity(
            samples, stopped_by, self.latency, sizes=self._sizes, max_batch=self._max_batch
        )
        with self._lock:
            if stopped_by in ("memory", "failure"):
                self._scheduler.cap(max(samples))
            self._scheduler.adopt(ServiceTable(samples))
            self.calibration = result
        return result

    @property
    def waiting(self) -> int:
        """Items in the queues."""
        with self._lock:
            return len(self._scheduler.queues)

    @property
    def largest_batch(self) -> int:
        """The largest batch that it would form now."""
        with self._lock:
            return self._scheduler.largest

    def oldest(self) -> float:
        """Seconds that the first in the queues has waited."""
        with self._lock:
            arrived = self._scheduler.queues.oldest()
        return 0.0 if arrived == NEVER else max(0.0, time.monotonic() - arrived)

    @property
    def is_running(self) -> bool:
        """Whether its thread is there, and with it the function that it may be in."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait until the function has returned for the last time, after `close`."""
        if self._thread is not None:
            self._thread.join()

    def close(self, timeout: float = 5.0) -> int:
        """Finish what was accepted, for `timeout` seconds at most; how many items were left."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closing = True
            self._came.notify_all()
            self._left.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._stopped = True
            left = [item for stream in self._scheduler.queues for item in stream.items]
            for stream in list(self._scheduler.queues):
                self._scheduler.queues.remove(stream.name)
            running = self._running
            self._came.notify_all()
        for item in left:
            self._drop(item, "closing")
        return len(left) + running

    # -- the engine's thread

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name="rightbatch-engine", daemon=True
            )
            self._thread.start()

    def _work(self) -> None:
        try:
            while (dispatch := self._next()) is not None:
                self._run(dispatch)
                with self._lock:
                    self._running = 0
                    self._free_at = 0.0
        except BaseException as error:  # a defect here: nobody is to wait for ever
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        with self._lock:
            self._closing = self._stopped = True
            left = [item for stream in self._scheduler.queues for item in stream.items]
            for stream in list(self._scheduler.queues):
                self._scheduler.queues.remove(stream.name)
            self._left.notify_all()
        for item in left:
            self._fail(item, error)

    def _next(self) -> Dispatch | None:
        """The next batch, when there is one; None at the end."""
        while True:
            with self._lock:
                while not len(self._scheduler.queues) and not self._closing:
                    self._came.wait()
                if self._stopped or not len(self._scheduler.queues):
                    return None
                first = None
                if self.calibration is None:
                    first = next(s for s in self._scheduler.queues if s.items).items[0]
            if first is not None:
                self._calibrate_on(first)
                continue
            with self._lock:
                now = time.monotonic()
                dispatch, dropped = self._scheduler.next(now)
                if dispatch is not None:
                    self._free_at = now + dispatch.seconds
                    self._running = len(dispatch.items)
                self._left.notify_all()
            for item, cause in dropped:
                self._drop(item, cause)
            if dispatch is not None:
                return dispatch

    def _calibrate_on(self, first: Item) -> None:
        try:
            self._on_first(first.payload)
        except BaseException as error:  # of that item; the next one may do
            with self._lock:
                try:
                    self._scheduler.queues.drop(first)
                except (KeyError, ValueError):  # replaced, or its stream closed, and said so
                    return
                self._left.notify_all()
            self._fail(first, error)

    def _run(self, dispatch: Dispatch) -> None:
        started, clock = time.monotonic(), time.perf_counter()
        outcomes = self._outcomes(dispatch.items)
        now, seconds = time.monotonic(), time.perf_counter() - clock
        served: list[tuple[str, float, bool]] = []
        size = len(dispatch.items)
        for item, outcome in zip(dispatch.items, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self._fail(item, outcome)
                continue
            latency = now - item.arrived
            in_time = latency <= self.latency
            served.append((item.stream, latency, in_time))
            self._tell(item, Served(outcome, size, latency, in_time, dispatch.reason))
        if served:
            record = BatchRecord(
                at=time.time(),
                size=size,
                ran_as=dispatch.ran_as,
                seconds=seconds,
                reason=dispatch.reason,
                waiting=len(self._scheduler.queues),
                oldest=started - min(item.arrived for item in dispatch.items),
                items=tuple(served),
            )
            for listener in self._listeners:
                _call_safely(listener.batch, record)

    def _outcomes(self, items: list[Item]) -> list[Any]:
        """A result or an exception for each: a batch that fails is run again in halves.

        One bad item does not take the others with it, and a batch that runs out of memory becomes
        two that need half.
        """
        size = len(items)
        started = time.perf_counter()
        try:
            results = self._function([item.payload for item in items])
            calibration.check_results(results, size)
            outcomes = list(results)
        except BaseException as error:
            if size == 1 or not isinstance(error, Exception):
                return [error] * size
            if is_out_of_memory(error):
                self.cap((size + 1) // 2)
        else:
            seconds = time.perf_counter() - started
            with self._lock:
                self._scheduler.observe(self._scheduler.padded(size), seconds)
            return outcomes
        middle = (size + 1) // 2
        return self._outcomes(items[:middle]) + self._outcomes(items[middle:])

    # -- small things

    def _refusal(self, stream: str, cause: Cause, retry_after: float = 0.0) -> LateError:
        for listener in self._listeners:
            _call_safely(listener.dropped, stream, cause)
        return LateError(_WHY[cause], cause=cause, retry_after=retry_after)

    def _drop(self, item: Item, cause: Cause) -> None:
        self._tell(
            item, self._refusal(item.stream, cause, self.latency if cause == "late" else 0.0)
        )

    def _fail(self, item: Item, error: BaseException) -> None:
        for listener in self._listeners:
            _call_safely(listener.dropped, item.stream, "failed")
        self._tell(item, error)

    def _tell(self, item: Item, outcome: Served | BaseException) -> None:
        if item.done is not None:
            _call_safely(item.done, outcome)


def _call_safely(hears: Callable[..., object], *said: object) -> None:
    """Nobody who hears of an item can keep the others from theirs."""
    try:
        hears(*said)
    except Exception:
        _LOG.exception("what hears of items failed")
