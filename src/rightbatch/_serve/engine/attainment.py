"""Whether anything is served in time: what `/health` answers."""

from __future__ import annotations

import threading
import time

from rightbatch._serve.engine.records import BatchRecord, Cause

TARGETS = 20
"""Latency targets without an item in time after which a server is unhealthy."""
LEAST = 3.0
"""Seconds, at least: a short target must not make one slow batch an outage."""

_MISSES = ("late", "refused", "full", "failed")


class Attainment:
    """Counts the seconds in which items came and none was served in time. Implements `Listener`.

    Args:
        latency: the target in seconds.
    """

    def __init__(self, latency: float) -> None:
        self._patience = max(TARGETS * latency, LEAST)
        self._lock = threading.Lock()
        self._failing_since: float | None = None
        self._last_miss = 0.0
        self._batch_since: float | None = None

    def batch_began(self) -> None:
        """Note that a batch with items that have a target runs from now on."""
        with self._lock:
            self._batch_since = time.monotonic()

    def batch_ended(self) -> None:
        """Note that no batch runs any more."""
        with self._lock:
            self._batch_since = None

    def note(self, in_time: bool) -> None:
        """Note an item with a target that had a result, or had none."""
        with self._lock:
            if in_time:
                self._failing_since = None
                return
            now = time.monotonic()
            if self._failing_since is None or now - self._last_miss > self._patience:
                self._failing_since = now
            self._last_miss = now

    def batch(self, record: BatchRecord) -> None:
        """Do nothing: the engine knows which items have a target, and calls `note`."""

    def dropped(self, stream: str, cause: Cause) -> None:
        """Note an item that was not served."""
        if cause in _MISSES:
            self.note(False)

    @property
    def seconds_without_success(self) -> float:
        """Seconds since which items come and none is in time; 0 while one is, or none comes."""
        with self._lock:
            now = time.monotonic()
            since = now
            if self._failing_since is not None and now - self._last_miss <= self._patience:
                since = self._failing_since
            if self._batch_since is not None:  # a model that hangs serves and drops nothing
                since = min(since, self._batch_since)
        return now - since if now - since >= self._patience else 0.0
