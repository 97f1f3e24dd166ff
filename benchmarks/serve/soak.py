"""Half an hour at 90% of what this machine can do: whether memory grows, whether anything drifts.

`python -m benchmarks.serve.soak [--minutes 30] [--latency 200ms] [--to FOLDER]`. A real model (the
YOLO26n of these benchmarks on ONNX Runtime; a small torch module where ultralytics is missing),
cameras and Poisson requests, half of the load each; on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import _record
from benchmarks._record import about, say
from benchmarks.serve.model import IMGSZ, onnx_model
from rightbatch._errors import LateError
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.records import BatchRecord, Cause, Served
from rightbatch._serve.engine.service_times import quantile
from rightbatch._serve.models.open import open_model
from rightbatch._serve.models.protocol import Model
from rightbatch._units import parse_seconds

MODELS = Path(tempfile.gettempdir()) / "rightbatch-benchmark-models"
LOAD, PER_CAMERA, JITTER = 0.9, 10.0, 0.02
EVERY = 10.0  # seconds between two samples
# Of the run: where its memory is looked at first and last. Minutes 3 to 8 and 25 to 30 of 30.
EARLY, LATE = (0.1, 0.8 / 3), (2.5 / 3, 1.0)
BLOCKS = 30  # of a run, whose medians a slope is laid through
GOAL = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--latency", default="200ms")
    parser.add_argument("--to", type=Path, default=_record.RESULTS, help="a folder")
    asked = parser.parse_args()
    busy = psutil.cpu_percent(2.0) / 100
    if busy > 0.1:
        say(f"this machine is busy ({busy:.0%}): what drifts may be what it does besides")
    document: dict[str, Any] = {"about": about(), "busy_before": busy, "minutes": asked.minutes}
    document |= soak(60 * asked.minutes, parse_seconds(asked.latency))
    document["verdict"] = verdict(document["samples"])
    _record.RESULTS = asked.to
    _record.save("serve_soak", document, table(document))


def soak(seconds: float, target: float) -> dict[str, Any]:
    model = _model()
    pictures = np.random.default_rng(0).integers(0, 256, (16, IMGSZ, IMGSZ, 3), dtype=np.uint8)
    window = Window(target)
    batcher = Batcher(
        model, target, sizes=model.sizes, calibrate_on=pictures[0], listeners=[window]
    )
    assert batcher.calibration is not None
    rate = LOAD * batcher.calibration.items_per_second
    cameras = max(1, round(rate / 2 / PER_CAMERA))
    requests = max(rate - cameras * PER_CAMERA, 0.0)
    say(f"{model.name}: {batcher.calibration}")
    say(f"{cameras} cameras of {PER_CAMERA:g}/s and {requests:.3g} requests/s")
    for camera in range(cameras):
        batcher.open_stream(f"camera {camera}", contract="freshest")
    stop = threading.Event()
    load = threading.Thread(
        target=_load, args=(batcher, pictures, schedule(cameras, requests), window, stop)
    )
    samples: list[dict[str, Any]] = []
    start = time.monotonic()
    load.start()
    try:
        while (past := time.monotonic() - start) < seconds:
            time.sleep(min(EVERY - past % EVERY, seconds - past))
            samples.append({"at": time.monotonic() - start} | _memory() | window.take(batcher))
            say(f"{samples[-1]}")
    except KeyboardInterrupt:
        say("cut short; what there is is stored")
    finally:
        stop.set()
        load.join()
        left = batcher.close(10.0)
        model.close()
    return {
        "model": model.name,
        "calibration": batcher.calibration.to_dict(),
        "target": target,
        "offered": {"cameras": cameras, "per_camera": PER_CAMERA, "requests": requests},
        "left": left,
        "samples": samples,
    }


def _model() -> Model:
    try:
        return open_model(str(onnx_model(MODELS)))
    except ImportError as error:
        say(f"{error}: a torch module instead")
    from torch import nn

    layers = [nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()]
    return open_model(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))


# -- the load


def schedule(cameras: int, requests: float, seed: int = 0) -> Iterator[tuple[float, str]]:
    """Moments, in order and without end, and their streams."""
    rng, period = random.Random(seed), 1 / PER_CAMERA
    coming = [(rng.uniform(0, period), f"camera {camera}") for camera in range(cameras)]
    due = {stream: at for at, stream in coming}
    if requests:
        coming.append((rng.expovariate(requests), "requests"))
    heapq.heapify(coming)
    while True:
        at, stream = coming[0]
        yield at, stream
        if stream == "requests":
            following = at + rng.expovariate(requests)
        else:
            due[stream] += period
            following = max(at, due[stream] + rng.gauss(0, JITTER * period))
        heapq.heapreplace(coming, (following, stream))


def _load(
    batcher: Batcher,
    pictures: np.ndarray,
    moments: Iterator[tuple[float, str]],
    window: Window,
    stop: threading.Event,
) -> None:
    start = time.monotonic()
    for number, (at, stream) in enumerate(moments):
        if stop.wait(max(0.0, start + at - time.monotonic())):
            return
        picture = pictures[number % len(pictures)].copy()  # every frame is one of its own
        window.offer(time.monotonic() - start - at)
        try:
            batcher.put(stream, picture, _forget, start + at)
        except LateError:
            pass  # the window has heard of it


def _forget(outcome: Served | BaseException) -> None:
    if isinstance(outcome, BaseException) and not isinstance(outcome, LateError):
        say(f"failed: {outcome!r}")


class Window:
    """What happened since it was looked at last."""

    def __init__(self, target: float) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._offered, self._in_time, self._lag = 0, 0, 0.0
        self._latencies: list[float] = []
        self._sizes: list[int] = []
        self._drops: Counter[str] = Counter()

    def offer(self, lag: float) -> None:
        with self._lock:
            self._offered += 1
            self._lag = max(self._lag, lag)

    def batch(self, record: BatchRecord) -> None:
        with self._lock:
            self._sizes.append(record.size)
            for _, latency, in_time in record.items:
                self._latencies.append(latency)
                self._in_time += in_time

    def dropped(self, stream: str, cause: Cause) -> None:
        with self._lock:
            self._drops[cause] += 1

    def take(self, batcher: Batcher) -> dict[str, Any]:
        with batcher._lock:
            level = batcher._scheduler.table.level
        with self._lock:
            found = {
                "offered": self._offered,
                "in_time": self._in_time,
                "dropped": dict(self._drops),
                "p50_ms": _milliseconds(self._latencies, 0.5),
                "p99_ms": _milliseconds(self._latencies, 0.99),
                "mean_batch": statistics.fmean(self._sizes) if self._sizes else None,
                "level": level,
                "generator_lag_ms": 1000 * self._lag,
            }
            self._clear()
        return found


def _milliseconds(latencies: list[float], q: float) -> float | None:
    return round(1000 * quantile(latencies, q), 3) if latencies else None


def _memory() -> dict[str, int]:
    """Bytes. `own` is what is no file's: what alone can leak. `uss` also has pages of libraries
    that no other process shares at the moment, and changes when another one starts or ends."""
    memory = psutil.Process().memory_full_info()
    own = memory.rss - getattr(memory, "shared", 0)
    threads = threading.active_count()
    return {"rss": memory.rss, "own": own, "uss": memory.uss, "threads": threads}


# -- the verdict


def verdict(samples: list[dict[str, Any]]) -> dict[str, Any]:
    offered = sum(sample["offered"] for sample in samples)
    end = samples[-1]["at"]
    return {
        "memory_growth": {kind: growth(samples, kind, end) for kind in ("own", "rss", "uss")},
        "drift": {kind: drift(samples, kind, end) for kind in _NAMES},
        "attainment": sum(sample["in_time"] for sample in samples) / max(offered, 1),
    }


def growth(samples: list[dict[str, Any]], kind: str, end: float) -> float:
    """The median of the last minutes over that of the first, less 1."""

    def middle(part: tuple[float, float]) -> float:
        return statistics.median(
            [one[kind] for one in samples if part[0] * end <= one["at"] <= part[1] * end]
            or [samples[-1][kind]]
        )

    return middle(LATE) / middle(EARLY) - 1


def drift(samples: list[dict[str, Any]], kind: str, end: float) -> dict[str, float] | None:
    """By how much of its median something changes over such a run, with a 95% interval.

    Theil and Sen's slope through the medians of blocks, from where `EARLY` begins. Neighbouring
    samples resemble each other, which would make the interval of all of them too narrow.
    """
    blocks: dict[int, list[tuple[float, float]]] = {}
    for one in samples:
        if one["at"] >= EARLY[0] * end and one[kind] is not None:
            blocks.setdefault(int(BLOCKS * one["at"] / end), []).append((one["at"], one[kind]))
    points = [tuple(map(statistics.median, zip(*block, strict=True))) for block in blocks.values()]
    if len(points) < 5:
        return None
    slope, low, high = theil_sen([(at / end, value) for at, value in points])
    middle = statistics.median(value for _, value in points)
    return {"change": slope / middle, "low": low / middle, "high": high / middle}


def theil_sen(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """The median of all slopes between two points, and Sen's interval of 95% (1968)."""
    slopes = sorted(
        (later - before) / (end - start)
        for number, (start, before) in enumerate(points)
        for end, later in points[number + 1 :]
    )
    count = len(points)
    wide = 1.96 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    low = max(0, math.floor((len(slopes) - wide) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + wide) / 2))
    return statistics.median(slopes), slopes[low], slopes[high]


# -- what a person reads

_NAMES: dict[str, tuple[str, Callable[[float], str]]] = {
    "rss": ("resident memory", lambda value: f"{value / 2**20:.1f} MiB"),
    "own": ("of that, not backed by files", lambda value: f"{value / 2**20:.1f} MiB"),
    "p50_ms": ("median latency", lambda value: f"{value:.1f} ms"),
    "p99_ms": ("99th percentile", lambda value: f"{value:.1f} ms"),
    "level": ("batch time ÷ calibrated batch time", lambda value: f"{value:.2f}"),
}


def table(document: dict[str, Any]) -> str:
    found, samples = document["verdict"], document["samples"]
    offered = document["offered"]
    grown = found["memory_growth"]
    lines = [
        "# A long run\n",
        f"{document['model']}, {samples[-1]['at'] / 60:.3g} minutes at {LOAD:.0%} of "
        f"{document['calibration']['items_per_second']:.3g} images/s: {offered['cameras']} cameras "
        f"at {offered['per_camera']:g} frames/s and {offered['requests']:.3g} requests/s, latency "
        f"target {1000 * document['target']:g} ms.\n",
        f"Resident memory grew by {grown['rss']:.2%}, the part not backed by files by "
        f"{grown['own']:.2%} (goal: at most {GOAL:.0%}), from the median of minutes 3 to 8 to that "
        "of the last 5 (a shorter run: the same shares of it). "
        f"{found['attainment']:.2%} of the offered load was in time.\n",
        "| | first | last | change over the run, 95% interval | drifts |",
        "|---|---|---|---|---|",
    ]
    for kind, (name, show) in _NAMES.items():
        values = [one[kind] for one in samples if one[kind] is not None]
        change = found["drift"][kind]
        cells = (
            "too short | –"
            if change is None
            else f"{change['change']:+.2%} ({change['low']:+.2%} to {change['high']:+.2%}) | "
            + ("yes" if _drifts(change) else "no")
        )
        lines.append(f"| {name} | {show(values[0])} | {show(values[-1])} | {cells} |")
    if document["busy_before"] > 0.1:
        busy = document["busy_before"]
        lines.append(f"\nThe machine was {busy:.0%} busy before the run began.")
    return "\n".join(lines) + "\n"


def _drifts(change: dict[str, float]) -> bool:
    """Whether it surely changes, and by more than the goal."""
    sure = change["low"] > 0 or change["high"] < 0
    return sure and abs(change["change"]) > GOAL


if __name__ == "__main__":
    main()
