"""Counts of served and dropped items, per stream."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from rightbatch._serve.engine.records import BatchRecord, Cause
from rightbatch._serve.engine.service_times import quantile

_LATENCIES = 512  # kept per stream, for the quantiles
_BATCHES = 200  # kept for the page
_RATE_WINDOW = 5.0  # seconds


@dataclass(slots=True)
class StreamCounts:
    """Counts of one stream; latencies in seconds."""

    served: int = 0
    in_time: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    finished: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES))

    def to_dict(self) -> dict[str, Any]:
        now = time.monotonic()
        recent = sum(now - at <= _RATE_WINDOW for at in self.finished)
        window = _RATE_WINDOW
        if recent == _LATENCIES:  # older ones were discarded: the window is shorter
            window = max(now - self.finished[0], 1e-3)
        latencies = list(self.latencies)
        return {
            "served": self.served,
            "in_time": self.in_time,
            "dropped": dict(self.dropped),
            "frames_per_second": round(recent / window, 2),
            "latency_ms": {
                "p50": round(1000 * quantile(latencies, 0.5), 2) if latencies else None,
                "p99": round(1000 * quantile(latencies, 0.99), 2) if latencies else None,
            },
        }


class Counters:
    """A `Listener` that counts items per stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[str, StreamCounts] = {}
        self._closed = StreamCounts()  # sum over closed streams
        self._batches: deque[BatchRecord] = deque(maxlen=_BATCHES)

    def batch(self, record: BatchRecord) -> None:
        now = time.monotonic()
        with self._lock:
            self._batches.append(record)
            for stream, latency, in_time in record.items:
                counts = self._counts(stream)
                counts.served += 1
                counts.in_time += in_time
                counts.latencies.append(latency)
                counts.finished.append(now)

    def dropped(self, stream: str, cause: Cause) -> None:
        with self._lock:
            self._counts(stream).dropped[cause] += 1

    def open(self, stream: str) -> None:
        """Start counting for a stream."""
        with self._lock:
            self._streams.setdefault(stream, StreamCounts())

    def close(self, stream: str) -> None:
        """Move a stream's counts, and all later ones, to the sum over closed streams."""
        with self._lock:
            counts = self._streams.pop(stream, None)
            if counts is not None:
                self._closed.served += counts.served
                self._closed.in_time += counts.in_time
                self._closed.dropped.update(counts.dropped)

    def __contains__(self, stream: str) -> bool:
        with self._lock:
            return stream in self._streams

    def of(self, stream: str) -> dict[str, Any]:
        """Return a stream's counts, rate and latency quantiles."""
        with self._lock:
            return self._streams.get(stream, StreamCounts()).to_dict()

    def total(self) -> dict[str, Any]:
        """Return the counts of all streams together."""
        with self._lock:
            streams = [self._closed, *self._streams.values()]
            dropped: Counter[str] = Counter()
            for counts in streams:
                dropped.update(counts.dropped)
            return {
                "served": sum(counts.served for counts in streams),
                "in_time": sum(counts.in_time for counts in streams),
                "dropped": dict(dropped),
            }

    def batches(self) -> list[dict[str, Any]]:
        """Return the last 200 batches, oldest first."""
        with self._lock:
            records = list(self._batches)
        return [
            {
                "at": round(record.at, 3),
                "size": record.size,
                "ran_as": record.ran_as,
                "ms": round(1000 * record.seconds, 2),
                "slowest_ms": round(1000 * max(latency for _, latency, _ in record.items), 2),
                "reason": record.reason,
                "waiting": record.waiting,
            }
            for record in records
        ]

    def _counts(self, stream: str) -> StreamCounts:
        return self._streams.get(stream, self._closed)
