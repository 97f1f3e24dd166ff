"""The observers of a training as one, and the seconds that count as training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rightbatch._elastic import Event
from rightbatch._training.protocol import Observer, StepLoss


class Observers:
    """Calls every observer in order, and measures the training without those that do not count.

    A loop calls `start` once, `begin_epoch` before an epoch's first batch, `seconds_of_step` and
    `step` after an update, `epoch_metrics` and then `epoch` at an epoch's end, and `end` at last.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self._is_measured_alone = not all(one.counts_as_training for one in observers)
        self._since = time.perf_counter()

    def start(self, loop: Any) -> None:
        """Call `on_start`, and start the clock."""
        for observer in self._observers:
            observer.on_start(loop)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the time since the last reading of the clock."""
        self._since = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds of training since the clock was last read."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds

    def seconds_of_step(self, step: int) -> float:
        """Return the seconds of an update, the `step`th of the training.

        Where observers do not count as training, the first step, which finds the micro-batch and
        starts the device, counts as the second one.
        """
        factor = {1: 0, 2: 2}.get(step, 1) if self._is_measured_alone else 1
        return factor * self.seconds()

    def step(self, loop: Any, report: StepLoss) -> None:
        """Call `on_step`."""
        for observer in self._observers:
            with self._uncounted(observer):
                observer.on_step(loop, report)

    def epoch_metrics(self, loop: Any) -> dict[str, float]:
        """Return what all observers measure at the end of an epoch."""
        metrics: dict[str, float] = {}
        for observer in self._observers:
            with self._uncounted(observer):
                metrics |= observer.measure_epoch(loop)
        return metrics

    def epoch(self, loop: Any) -> None:
        """Call `on_epoch`."""
        for observer in self._observers:
            observer.on_epoch(loop)

    def event(self, loop: Any, event: Event) -> None:
        """Count an out-of-memory event in the loop's state, and call `on_event` in one process."""
        loop.state.out_of_memory_events += event.kind in ("out_of_memory", "rolled_back")
        if loop.processes.is_first:
            for observer in self._observers:
                observer.on_event(loop, event)

    def end(self, loop: Any) -> None:
        """Call `on_end`."""
        for observer in self._observers:
            observer.on_end(loop)

    @contextmanager
    def _uncounted(self, observer: Observer) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if not observer.counts_as_training:
                self._since += time.perf_counter() - began
