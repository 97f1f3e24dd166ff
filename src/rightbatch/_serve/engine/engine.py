"""The engine: a thread that runs a function on batches of the items of many streams.

The scheduler chooses each batch. On the first item the engine calibrates: it runs growing batches
of that item to measure their durations.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rightbatch._device import is_out_of_memory
from rightbatch._errors import UsageError
from rightbatch._serve.engine import calibration
from rightbatch._serve.engine.attainment import Attainment
from rightbatch._serve.engine.calibration import Calibration, Function
from rightbatch._serve.engine.counters import Counters
from rightbatch._serve.engine.outcomes import Outcomes, late_error
from rightbatch._serve.engine.queues import NEVER, Item
from rightbatch._serve.engine.records import BatchRecord, Contract, Listener, Served
from rightbatch._serve.engine.scheduler import Dispatch, Scheduler
from rightbatch._serve.engine.service_times import ServiceTable
from rightbatch._units import parse_seconds

_LOG = logging.getLogger("rightbatch")

Done = Callable[[Served | BaseException], None]
_MAX_OVERHEAD = 0.25  # share of the target that the delay before `put` may take up
_UNLIKE = 0.5  # a probe below this share of the calibration's seconds calibrates again
_CONTRACTS = ("every", "freshest", "deadline")


class Engine:
    """Runs a function on batches of queued items, one batch at a time, on a thread of its own."""

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
            raise UsageError(f"a Batcher takes a function on lists, got {type(function).__name__}")
        if sizes is not None and (not sizes or min(sizes) < 1):
            raise UsageError(f"sizes must be integers of at least 1, got {list(sizes)}")
        if max_batch is not None and max_batch < 1:
            raise UsageError(f"max_batch must be at least 1, got {max_batch}")
        if sizes is not None and max_batch is not None:
            sizes = [size for size in sizes if size <= max_batch]
            if not sizes:
                raise UsageError(f"no batch size of the model is at most max_batch={max_batch}")
        self.latency = parse_seconds(latency)
        self.counters = Counters()
        self.calibration: Calibration | None = None
        self._function = function
        self._sizes = sizes
        self._max_batch = max_batch
        self._on_first = on_first or self.calibrate
        self.attainment = Attainment(self.latency)
        self._outcomes = Outcomes(self.latency, [self.counters, self.attainment, *listeners])
        # Until the calibration the table assumes that a batch takes no time.
        self._scheduler = Scheduler(
            ServiceTable({1: [1e-9]}), self.latency, sizes=sizes, max_batch=max_batch
        )
        self._lock = threading.Lock()
        self._item_queued = threading.Condition(self._lock)  # or closing
        self._space_freed = threading.Condition(self._lock)
        self._free_at = 0.0
        self._running = 0  # items in the batch that runs
        self._closing = False
        self._stopped = False
        self._thread: threading.Thread | None = None
        if calibrate_on is not None:
            self.calibrate(calibrate_on)

    def put(self, stream: str, item: Any, done: Done, arrived: float | None = None) -> None:
        """Queue an item. `done` is called with its outcome, on any thread, and must return quickly.

        On a stream with the contract `every` this blocks until there is room.

        Raises:
            LateError: if the item is predicted to be late, or the batcher is closing.
        """
        with self._lock:
            now = time.monotonic()
            if self._closing:
                raise self._outcomes.refused(stream, "closing")
            scheduler = self._scheduler
            if stream not in scheduler.queues:
                scheduler.open(stream)
                self.counters.open(stream)
            queue = scheduler.queues[stream]
            self._start()
            if queue.contract == "every":
                while queue.is_full and not self._closing and stream in scheduler.queues:
                    self._space_freed.wait()
                if self._closing or stream not in scheduler.queues:
                    raise self._outcomes.refused(stream, "closing")
            waiting = Item(stream, item, now if arrived is None else arrived, NEVER, done)
            if queue.contract == "deadline":
                if queue.is_full:
                    raise self._outcomes.refused(stream, "full")
                if self.calibration is not None:
                    late = scheduler.lateness(stream, now, self._expect_free(now), waiting.arrived)
                    is_probe = scheduler.is_probe_due(now) and not len(scheduler.queues)
                    if late > 0 and not is_probe:
                        raise self._outcomes.refused(stream, "refused", late)
            # The estimate follows an upper quantile of the delay before `put`. Items that are late
            # already are left out: a slow sender must not shrink everybody's batches.
            if arrived is not None and now - arrived < self.latency:
                change = min(now - arrived, _MAX_OVERHEAD * self.latency) - scheduler.overhead
                scheduler.overhead += change * (0.05 if change > 0 else 0.01)
            replaced = scheduler.put(waiting)
            if self.calibration is None:
                waiting.deadline = NEVER  # durations are not known yet
            self._item_queued.notify()
        if replaced is not None:
            self._outcomes.dropped(replaced, "replaced")

    def open_stream(
        self,
        name: str,
        *,
        contract: Contract = "deadline",
        weight: float | None = None,
        depth: int | None = None,
    ) -> None:
        """Open a stream with a loss contract and a weight.

        Args:
            name: of the stream.
            contract: `every` loses no item and blocks the producer, `freshest` keeps the newest,
                `deadline` keeps an item until it would be late.
            weight: share of the device relative to other streams when it is overloaded. Default: 1;
                0.1 for `every`, which uses what the others leave.
            depth: the most items that wait. Default: `every` two batches, `freshest` 1, `deadline`
                no limit.

        Raises:
            UsageError: if the stream is open already, or an argument is invalid.
        """
        if contract not in _CONTRACTS:
            raise UsageError(
                f"unknown contract {contract!r}; choose one of {', '.join(_CONTRACTS)}"
            )
        if weight is not None and not 0.001 <= weight <= 1000:
            raise UsageError(f"weight must be from 0.001 to 1000, got {weight}")
        if depth is not None and depth < 1:
            raise UsageError(f"depth must be at least 1, got {depth}")
        with self._lock:
            if name in self._scheduler.queues:
                raise UsageError(f"stream {name!r} exists already; choose another name")
            self._scheduler.open(name, contract, weight, depth)
            self.counters.open(name)

    def close_stream(self, name: str) -> None:
        """Close a stream; items that wait in it are dropped.

        Raises:
            UsageError: if there is no stream of that name.
        """
        with self._lock:
            if name not in self._scheduler.queues:
                known = ", ".join(sorted(s.name for s in self._scheduler.queues)) or "none"
                raise UsageError(f"no stream {name!r}; open streams: {known}")
            dropped = self._scheduler.queues.remove(name)
            self._space_freed.notify_all()
        for item in dropped:
            self._outcomes.dropped(item, "closing")
        self.counters.close(name)

    def limit_batch(self, max_batch: int) -> None:
        """Lower the most items in a batch (memory)."""
        with self._lock:
            self._max_batch = min(max_batch, self._max_batch or max_batch)
            self._scheduler.limit_batch(self._max_batch)

    def listen(self, listener: Listener) -> None:
        """Notify one more listener of every batch and every drop."""
        self._outcomes.add(listener)

    def calibrate(self, item: Any, show: Callable[[str], None] = lambda text: None) -> Calibration:
        """Measure batches of an item, on the calling thread.

        Args:
            item: a typical item.
            show: called with a text on the progress.

        Raises:
            Exception: what the function raised for a single item.
            LateError: if the batcher is closed meanwhile.
        """

        def show_or_stop(text: str) -> None:
            if self._stopped:
                raise late_error("closing")
            show(text)

        samples, stopped_by = calibration.measure(
            self._function,
            item,
            self.latency,
            sizes=self._sizes,
            max_batch=self._max_batch,
            is_out_of_memory=is_out_of_memory,
            show=show_or_stop,
        )
        if stopped_by in ("memory", "failure"):
            self._max_batch = max(samples)
        show_or_stop("estimating the capacity")
        result = calibration.estimate_capacity(
            samples, stopped_by, self.latency, sizes=self._sizes, max_batch=self._max_batch
        )
        with self._lock:
            if stopped_by in ("memory", "failure"):
                self._scheduler.limit_batch(max(samples))
            self._scheduler.use_table(ServiceTable(samples))
            self.calibration = result
        return result

    @property
    def waiting(self) -> int:
        """Items in the queues."""
        with self._lock:
            return len(self._scheduler.queues)

    @property
    def largest_batch(self) -> int:
        """The largest batch that it forms now."""
        with self._lock:
            return self._scheduler.largest

    def oldest(self) -> float:
        """Return the seconds that the oldest waiting item has waited; 0 if none waits."""
        with self._lock:
            arrived = self._scheduler.queues.oldest()
        return 0.0 if arrived == NEVER else max(0.0, time.monotonic() - arrived)

    @property
    def is_running(self) -> bool:
        """Whether its thread is alive; the function may then be running."""
        return self._thread is not None and self._thread.is_alive()

    def join(self) -> None:
        """Wait for the thread to end, after `close`."""
        if self._thread is not None:
            self._thread.join()

    def close(self, timeout: float = 5.0) -> int:
        """Finish the queued items, for at most `timeout` seconds; return the number left."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closing = True
            self._item_queued.notify_all()
            self._space_freed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._stopped = True
            left = self._remove_all()
            running = self._running
            self._item_queued.notify_all()
        for item in left:
            self._outcomes.dropped(item, "closing")
        return len(left) + running

    def _expect_free(self, now: float) -> float:
        """Return when the running batch is expected to end.

        What is overdue by more than the target is expected to take as long again: it may hang, and
        who asks now must not wait for it without an answer.
        """
        overdue = now - self._free_at
        return now + overdue if self._running and overdue > self.latency else self._free_at

    def _remove_all(self) -> list[Item]:
        queues = self._scheduler.queues
        return [item for stream in list(queues) for item in queues.remove(stream.name)]

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
        except BaseException as error:  # a bug in the engine: callers must not wait forever
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        with self._lock:
            self._closing = self._stopped = True
            left = self._remove_all()
            self._space_freed.notify_all()
        for item in left:
            self._outcomes.failed(item, error)

    def _next(self) -> Dispatch | None:
        """Wait for the next batch; None when closed."""
        while True:
            with self._lock:
                while not len(self._scheduler.queues) and not self._closing:
                    self._item_queued.wait()
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
                self._space_freed.notify_all()
            for item, cause in dropped:
                self._outcomes.dropped(item, cause)
            if dispatch is not None:
                return dispatch

    def _calibrate_on(self, first: Item) -> None:
        try:
            self._on_first(first.payload)
        except BaseException as error:  # of this item only; calibrate on the next one
            with self._lock:
                try:
                    self._scheduler.queues.drop(first)
                except (KeyError, ValueError):  # replaced or closed meanwhile, and reported
                    return
                self._space_freed.notify_all()
            self._outcomes.failed(first, error)

    def _run(self, dispatch: Dispatch) -> None:
        if any(item.deadline != NEVER for item in dispatch.items):
            self.attainment.batch_began()
        started, clock = time.monotonic(), time.perf_counter()
        outcomes = self._run_items(dispatch.items, dispatch.is_probe)
        seconds = time.perf_counter() - clock  # first, so that no latency is below it
        self.attainment.batch_ended()
        now = time.monotonic()
        served: list[tuple[str, float, bool]] = []
        size = len(dispatch.items)
        for item, outcome in zip(dispatch.items, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                self._outcomes.failed(item, outcome)
                continue
            latency = now - item.arrived
            in_time = latency <= self.latency
            served.append((item.stream, latency, in_time))
            if item.deadline != NEVER:
                self.attainment.note(in_time)
            self._outcomes.tell(item, Served(outcome, size, latency, in_time, dispatch.reason))
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
            self._outcomes.batch(record)
            if dispatch.is_probe and self._scheduler.table.level < _UNLIKE:
                # The calibration's item was unlike those that come, as one huge picture is: it said
                # that nothing fits, and how batches grow is not known.
                self._calibrate_again(dispatch.items[0].payload)

    def _calibrate_again(self, item: Any) -> None:
        try:
            self._on_first(item)
        except Exception:  # closed meanwhile, or this item fails in larger batches: keep the table
            _LOG.debug("the calibration was not repeated", exc_info=True)

    def _run_items(self, items: list[Item], is_probe: bool = False) -> list[Any]:
        """Return a result or an exception for each item; run a batch that fails again in halves.

        So one bad item does not fail the others, and a batch that runs out of memory becomes two
        that need half.
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
                self.limit_batch((size + 1) // 2)
        else:
            seconds = time.perf_counter() - started
            with self._lock:
                self._scheduler.observe(
                    self._scheduler.padded(size),
                    seconds,
                    now=time.monotonic(),
                    is_probe=is_probe,
                )
            return outcomes
        middle = (size + 1) // 2
        return self._run_items(items[:middle]) + self._run_items(items[middle:])
