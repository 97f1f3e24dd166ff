"""Metrics for Prometheus, in seconds and monotonic counts.

Counts are read from `server.status()` at each scrape. Distributions, which would lose batches
between two scrapes, are recorded by a listener of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from rightbatch._errors import MissingExtraError
from rightbatch._serve.engine.records import REQUESTS, BatchRecord, Cause

try:
    from prometheus_client import CollectorRegistry, Counter, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import choose_encoder
except ImportError:
    raise MissingExtraError("prometheus-client", "serve") from None

if TYPE_CHECKING:
    from rightbatch._serve.engine.batcher import Batcher

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STATES = ("connecting", "running", "waiting", "ended", "failed", "stopped")


class StatusSource(Protocol):
    """The server that is measured."""

    @property
    def batcher(self) -> Batcher: ...

    def status(self) -> dict[str, Any]: ...


class Metrics:
    """A separate registry with the metrics of one server, and the `Listener` that updates it."""

    def __init__(self, server: StatusSource) -> None:
        self._server = server
        self._registry = CollectorRegistry()
        # First in order: it removes labels of closed sources before histograms are collected.
        self._registry.register(_Collector(self._current))
        target = server.batcher.latency
        # A bucket that ends at the target counts the items that met it.
        seconds = sorted({*_SECONDS, target})

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(
                f"rightbatch_{name}", text, labels, registry=self._registry, buckets=tuple(buckets)
            )

        self._size = histogram("batch_size", "Items of a batch.", _SIZES)
        self._run = histogram("batch_seconds", "Seconds that the model took for a batch.", seconds)
        self._age = histogram(
            "queue_age_seconds", "Age of a batch's oldest item when the batch started.", seconds
        )
        self._latency = histogram(
            "latency_seconds", "From an item's arrival to its result.", seconds, "source"
        )
        self._reasons = Counter(
            "rightbatch_batches",
            "Batches, by why they had their size.",
            ("reason",),
            registry=self._registry,
        )
        self._of_source: dict[str, Histogram] = {}  # `labels()` is slower than `observe()`
        server.batcher.listen(self)

    def batch(self, record: BatchRecord) -> None:
        """Record a batch."""
        self._size.observe(record.size)
        self._run.observe(record.seconds)
        self._age.observe(max(record.oldest, 0.0))
        self._reasons.labels(record.reason).inc()
        for stream, latency, _ in record.items:
            latencies = self._of_source.get(stream)
            if latencies is None:
                latencies = self._of_source[stream] = self._latency.labels(stream)
            latencies.observe(latency)

    def dropped(self, stream: str, cause: Cause) -> None:
        """Do nothing: `status()` counts drops."""

    def text(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in the format of the Accept header, and the Content-Type."""
        encode, kind = choose_encoder(accept)
        return encode(self._registry), kind

    def _current(self) -> Mapping[str, Any]:
        """Return the status; remove the metrics of sources that no longer exist."""
        status = self._server.status()
        known = {source["name"] for source in status["sources"]} | {REQUESTS, ""}
        for removed in [name for name in list(self._of_source) if name not in known]:
            self._of_source.pop(removed, None)  # scrapes may run concurrently
            self._latency.remove(removed)
        return status


class _Collector:
    """Converts a status to metrics."""

    def __init__(self, current: Any) -> None:
        self._current = current

    def describe(self) -> list[Metric]:
        """Return nothing, so that the registry does not collect at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._current()
        yield from _of_server(status)
        yield from _of_streams(status)
        yield from _of_sources(status["sources"])


def _of_server(status: Mapping[str, Any]) -> Iterator[Metric]:
    model = GaugeMetricFamily("rightbatch_model", "The model that is served.", labels=["model"])
    model.add_metric([str(status["model"])], 1)
    yield model
    for name, text, value in (
        (
            "latency_target_seconds",
            "The target, from an item's arrival to its result.",
            status["latency_target_ms"] / 1000,
        ),
        ("started_seconds", "Unix time at which it began.", status["since"]),
        ("largest_batch", "The largest batch that is formed now.", status["largest_batch"]),
        ("waiting_items", "Items in the queues.", status["waiting"]),
        ("oldest_seconds", "How long the first in the queues waits.", status["oldest_ms"] / 1000),
    ):
        yield _gauge(name, text, value or 0)
    written = status["written"]
    yield _counter("lines_written", "Lines of results.", written["lines"])
    yield _counter("lines_left_out", "Lines that were not written.", written["left_out"])


def _of_streams(status: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the counts of sources and of HTTP requests."""
    counts = {source["name"]: source for source in status["sources"]}
    if status["requests"] is not None:
        counts[REQUESTS] = status["requests"]
    served = CounterMetricFamily("rightbatch_served", "Items with a result.", labels=["source"])
    in_time = CounterMetricFamily(
        "rightbatch_in_time", "Items whose result met the target.", labels=["source"]
    )
    attained = GaugeMetricFamily(
        "rightbatch_attained_ratio",
        "Items that met the target, of those with a result.",
        labels=["source"],
    )
    dropped = CounterMetricFamily(
        "rightbatch_dropped", "Items without a result, by cause.", labels=["source", "cause"]
    )
    for name, count in counts.items():
        served.add_metric([name], count["served"])
        in_time.add_metric([name], count["in_time"])
        if count["served"]:
            attained.add_metric([name], count["in_time"] / count["served"])
        for cause, number in count["dropped"].items():
            dropped.add_metric([name, cause], number)
    yield from (served, in_time, attained, dropped)


def _of_sources(sources: list[Mapping[str, Any]]) -> Iterator[Metric]:
    counters = {
        "frames": "Frames that a source brought.",
        "broken": "Frames that arrived damaged.",
        "reconnects": "Connections after the first that brought frames.",
    }
    for key, text in counters.items():
        name = {"broken": "broken_frames"}.get(key, key)
        counter = CounterMetricFamily(f"rightbatch_{name}", text, labels=["source"])
        for source in sources:
            counter.add_metric([source["name"]], source[key])
        yield counter
    state = GaugeMetricFamily(
        "rightbatch_source_state", "1 for the state it is in.", labels=["source", "state"]
    )
    age = GaugeMetricFamily(
        "rightbatch_last_frame_age_seconds", "Since its last frame.", labels=["source"]
    )
    for source in sources:
        for name in _STATES:
            state.add_metric([source["name"], name], source["state"] == name)
        if source["last_frame_age"] is not None:
            age.add_metric([source["name"]], source["last_frame_age"])
    yield from (state, age)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"rightbatch_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"rightbatch_{name}", text, value=value)
