"""What Prometheus reads, by its own parser."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from films import PATIENCE
from sites import StandIn, ask, encoded, picture, site, source, stand_in

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from prometheus_client import REGISTRY, Histogram
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as families

from rightbatch._serve.engine.records import BatchRecord
from rightbatch._serve.web.metrics import Metrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(metrics: Metrics) -> Samples:
    text = metrics.text()[0].decode()
    return {
        (sample.name.removeprefix("rightbatch_"), frozenset(sample.labels.items())): sample.value
        for family in families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


class Last:
    """The listener that hears of a batch after all others; `heard` is set after `count` items."""

    def __init__(self, count: int) -> None:
        self.heard = threading.Event()
        self._left = count

    def batch(self, record: BatchRecord) -> None:
        self._left -= len(record.items)
        if self._left <= 0:
            self.heard.set()

    def dropped(self, stream: str, cause: str) -> None: ...


def served(server: StandIn, stream: str = "http", count: int = 6) -> None:
    last = Last(count + 1)
    server.batcher.listen(last)
    server.batcher.submit(picture()).result()  # which calibrates
    waiting = [server.batcher.submit(picture(), stream=stream) for _ in range(count)]
    for one in waiting:
        one.result()
    assert last.heard.wait(
        PATIENCE
    )  # listeners hear of a batch after those who wait for its results


def test_batches_are_counted_by_size_reason_and_time() -> None:
    with stand_in(latency=60.0) as server:
        metrics = Metrics(server)
        served(server)
        found = samples(metrics)
        batches = server.batcher.counters.batches()
    assert value(found, "batch_size_count") == len(batches)
    assert value(found, "batch_size_sum") == 7
    assert value(found, "batch_seconds_count") == len(batches)
    assert value(found, "queue_age_seconds_count") == len(batches)
    reasons = {key: number for key, number in found.items() if key[0] == "batches_total"}
    assert sum(reasons.values()) == len(batches)
    assert value(found, "batches_total", reason="all waiting items") is not None


def test_latencies_are_counted_by_source_with_a_bucket_that_ends_at_the_target() -> None:
    with stand_in(latency=60.0) as server:
        metrics = Metrics(server)
        served(server)
        found = samples(metrics)
    assert value(found, "latency_seconds_bucket", source="http", le="60.0") == 6
    assert value(found, "latency_seconds_count", source="http") == 6
    assert 0 < (value(found, "latency_seconds_sum", source="http") or 0) < 6 * 60


def test_a_source_that_is_gone_leaves_nothing_behind() -> None:
    with stand_in(latency=60.0, sources=[source("line1"), source("line2")]) as server:
        metrics = Metrics(server)
        served(server, "line1")
        assert value(samples(metrics), "latency_seconds_count", source="line1") == 6
        server.remove("line1")
        found = samples(metrics)
        assert not [key for key in found if ("source", "line1") in key[1]]
        assert value(found, "frames_total", source="line2") == 1200
        server.add_from_page("rtsp://line1", name="line1")
        served(server, "line1", 3)
        assert value(samples(metrics), "latency_seconds_count", source="line1") == 3


def test_the_status_is_told_in_seconds_and_counts() -> None:
    cameras = [
        source("line1", reconnects=3, broken=2, last_frame_age=1.5),
        source("hall", state="waiting", last_frame_age=None, served=0, in_time=0, dropped={}),
    ]
    with stand_in(latency=0.25, sources=cameras) as server:
        found = samples(Metrics(server))
    assert value(found, "latency_target_seconds") == 0.25
    assert value(found, "model", model="yolo26n") == 1
    assert value(found, "largest_batch") == 1
    assert value(found, "waiting_items") == 0
    assert value(found, "served_total", source="line1") == 1180
    assert value(found, "in_time_total", source="line1") == 1176
    assert value(found, "attained_ratio", source="line1") == pytest.approx(1176 / 1180)
    assert value(found, "attained_ratio", source="hall") is None
    assert value(found, "dropped_total", source="line1", cause="replaced") == 18
    assert value(found, "reconnects_total", source="line1") == 3
    assert value(found, "broken_frames_total", source="line1") == 2
    assert value(found, "source_state", source="hall", state="waiting") == 1
    assert value(found, "source_state", source="hall", state="running") == 0
    assert value(found, "last_frame_age_seconds", source="line1") == 1.5
    assert value(found, "last_frame_age_seconds", source="hall") is None
    assert value(found, "lines_written_total") == 1180


def test_requests_that_are_refused_are_counted_by_cause() -> None:
    with stand_in(latency=60.0) as server:
        metrics = Metrics(server)
        served(server)
        server.batcher.close()
        with pytest.raises(Exception, match="closing"):
            server.batcher.submit(picture(), stream="http")
        found = samples(metrics)
    assert value(found, "dropped_total", source="http", cause="closing") == 1
    assert value(found, "served_total", source="http") == 6


@pytest.mark.parametrize("name", ['a"b', "a\\b", "line\n2", "ä {x}"])
def test_any_name_can_be_read_back(name: str) -> None:
    with stand_in(sources=[source(name)]) as server:
        assert value(samples(Metrics(server)), "frames_total", source=name) == 1200


def test_two_servers_have_figures_of_their_own_and_the_global_registry_none() -> None:
    with stand_in() as one, stand_in() as other:
        first, second = Metrics(one), Metrics(other)
        served(one)
        assert value(samples(first), "batch_size_sum") == 7
        assert value(samples(second), "batch_size_sum") == 0
    assert not [name for name in REGISTRY._names_to_collectors if name.startswith("rightbatch")]


def test_the_figures_come_over_http_in_the_format_that_is_asked_for() -> None:
    with stand_in(sources=[source("line1")]) as server, site(server) as url:
        ask(url, "/predict", encoded(picture()))
        plain = ask(url, "/metrics")
        accept = "application/openmetrics-text; version=1.0.0"
        newer = ask(url, "/metrics", Accept=accept)
    assert plain.headers["Content-Type"].startswith("text/plain; version=")
    assert newer.headers["Content-Type"].startswith("application/openmetrics-text")
    names = {family.name for family in families(plain.body.decode())}
    assert "rightbatch_latency_seconds" in names
    assert {family.name for family in open_families(newer.body.decode())} <= names | {
        name.removesuffix("_total") for name in names
    }


def test_a_batch_looks_up_each_label_once_and_observes_each_item_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with stand_in() as server:
        metrics = Metrics(server)
        lookups: Counter[str] = Counter()
        observed: Counter[int] = Counter()
        labels, observe = Histogram.labels, Histogram.observe

        def counted_labels(self: Histogram, *values: Any, **named: Any) -> Any:
            lookups[values[0]] += 1
            return labels(self, *values, **named)

        def counted_observe(self: Histogram, amount: float, *more: Any) -> None:
            observed[id(self)] += 1
            observe(self, amount, *more)

        monkeypatch.setattr(Histogram, "labels", counted_labels)
        monkeypatch.setattr(Histogram, "observe", counted_observe)
        items = tuple((f"line{n % 8}", 0.01 * n, True) for n in range(32))
        record = BatchRecord(0.0, 32, 32, 0.05, "all waiting items", 0, 0.1, items)
        for _ in range(10):
            metrics.batch(record)
    # The look-up by label costs more than the observation: one per source, not one per item.
    assert lookups == {f"line{n}": 1 for n in range(8)}
    assert sorted(observed.values()) == [10] * 3 + [40] * 8
