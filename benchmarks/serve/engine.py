"""What the engine itself costs: processor time per item, of a model that does nothing.

`python -m benchmarks.serve.engine` takes nine minutes on two cores. An open load of 10,000 items a
second, each at its own moment, so that the engine forms thousands of batches a second; the
process's time, less that of the same load put on something that does nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil

from benchmarks._record import about, median, save, say
from rightbatch._errors import LateError
from rightbatch._serve.engine.batcher import Batcher
from rightbatch._serve.engine.records import Served

RATE, SECONDS, REPEATS = 10_000, 20.0, 5
TARGET, STREAMS = 0.05, 8
GOAL_US = 50.0

Put = Callable[[str, int, float], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS)
    asked = parser.parse_args()
    busy = psutil.cpu_percent(2.0) / 100
    if busy > 0.1:
        say(f"this machine is busy ({busy:.0%}): the numbers will be too high")
    runs: list[dict[str, Any]] = []
    for repeat in range(REPEATS):
        for way, run in WAYS.items():  # in turn, so that a drift of the machine meets all
            runs.append({"way": way, "repeat": repeat, **run(asked.seconds)})
            say(f"{runs[-1]}")
    document = {
        "about": about(),
        "busy_before": busy,
        "rate": RATE,
        "seconds": asked.seconds,
        "target": TARGET,
        "goal_us": GOAL_US,
        "costs": {way: cost(runs, way) for way in BASELINES},
        "runs": runs,
    }
    save("serve_engine", document, table(document))


# -- the load


def offer(put: Put, seconds: float) -> dict[str, float]:
    """Put items from a thread at their moments; seconds of processor time, and what became late."""
    names = [f"camera {number}" for number in range(STREAMS)]
    count, lag = int(RATE * seconds), 0.0
    before = time.process_time()
    start = time.monotonic()
    for number in range(count):
        scheduled = start + number / RATE
        if (ahead := scheduled - time.monotonic()) > 0:
            time.sleep(ahead)
        else:
            lag = max(lag, -ahead)
        put(names[number % STREAMS], number, scheduled)
    took = time.monotonic() - start
    return {
        "items": count,
        "processor_seconds": time.process_time() - before,
        "seconds": took,
        "generator_lag": lag,
    }


async def offer_tasks(ask: Callable[[int], Awaitable[Any]], seconds: float) -> dict[str, float]:
    """The same from an event loop, a task for each item."""
    count, lag = int(RATE * seconds), 0.0
    tasks: set[asyncio.Task[Any]] = set()
    before = time.process_time()
    start = time.monotonic()
    for number in range(count):
        scheduled = start + number / RATE
        ahead = scheduled - time.monotonic()
        lag = max(lag, -ahead)
        if ahead > 0 or number % 16 == 0:  # and let the others go on, where it is late
            await asyncio.sleep(max(ahead, 0.0))
        task = asyncio.ensure_future(ask(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    return {
        "items": count,
        "processor_seconds": time.process_time() - before,
        "seconds": time.monotonic() - start,
        "generator_lag": lag,
    }


# -- what it is put on


class Outcomes:
    """Counts, on the engine's thread."""

    def __init__(self) -> None:
        self.served = self.in_time = self.lost = 0

    def __call__(self, outcome: Served | BaseException) -> None:
        if isinstance(outcome, Served):
            self.served += 1
            self.in_time += outcome.in_time
        else:
            self.lost += 1

    def to_dict(self) -> dict[str, int]:
        return {"served": self.served, "in_time": self.in_time, "lost": self.lost}


class Batches:
    """A listener that counts batches."""

    def __init__(self) -> None:
        self.count = 0

    def batch(self, record: Any) -> None:
        self.count += 1

    def dropped(self, stream: str, cause: Any) -> None:
        pass


def _batcher() -> tuple[Batcher, Batches]:
    batches = Batches()
    return Batcher(lambda items: items, TARGET, calibrate_on=0, listeners=[batches]), batches


def nothing(seconds: float) -> dict[str, Any]:
    return offer(lambda stream, item, arrived: None, seconds)


def by_put(seconds: float) -> dict[str, Any]:
    batcher, batches = _batcher()
    outcomes = Outcomes()

    def put(stream: str, item: int, arrived: float) -> None:
        try:
            batcher.put(stream, item, outcomes, arrived)
        except LateError as error:
            outcomes(error)

    with batcher:
        found: dict[str, Any] = offer(put, seconds)
    return found | outcomes.to_dict() | {"batches": batches.count}


def by_submit(seconds: float) -> dict[str, Any]:
    batcher, batches = _batcher()
    outcomes = Outcomes()

    def put(stream: str, item: int, arrived: float) -> None:
        try:
            future = batcher.submit(item, stream=stream, arrived=arrived)
        except LateError as error:
            outcomes(error)
            return
        future.add_done_callback(lambda one: outcomes(one.exception() or one.result()))

    with batcher:
        found: dict[str, Any] = offer(put, seconds)
    return found | outcomes.to_dict() | {"batches": batches.count}


def nothing_awaited(seconds: float) -> dict[str, Any]:
    async def ask(item: int) -> None:
        await asyncio.sleep(0)

    return asyncio.run(offer_tasks(ask, seconds))


def by_await(seconds: float) -> dict[str, Any]:
    batcher, batches = _batcher()
    served = lost = 0

    async def ask(item: int) -> None:
        nonlocal served, lost
        try:
            await batcher(item, stream=f"camera {item % STREAMS}")
            served += 1
        except LateError:
            lost += 1

    with batcher:
        found: dict[str, Any] = asyncio.run(offer_tasks(ask, seconds))
    return found | {"served": served, "lost": lost, "batches": batches.count}


WAYS: dict[str, Callable[[float], dict[str, Any]]] = {
    "nothing": nothing,
    "put": by_put,
    "submit": by_submit,
    "nothing, awaited": nothing_awaited,
    "await": by_await,
}
BASELINES = {"put": "nothing", "submit": "nothing", "await": "nothing, awaited"}


# -- what a person reads


def cost(runs: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """Microseconds per item: each run's own, less the median of the load alone."""
    base = [_microseconds(run) for run in runs if run["way"] == BASELINES[way]]
    alone = median(base)
    samples = [_microseconds(run) - alone for run in runs if run["way"] == way]
    return {
        "microseconds": median(samples),
        "samples": samples,
        "load_alone": alone,
        "load_alone_samples": base,
    }


def _microseconds(run: dict[str, Any]) -> float:
    return 1e6 * float(run["processor_seconds"]) / float(run["items"])


def table(document: dict[str, Any]) -> str:
    lines = [
        "# What the engine costs\n",
        f"Processor time per item with a model that does nothing: {document['rate']:,} items per "
        f"second for {document['seconds']:g} s in {STREAMS} streams, less the load generator's "
        f"own time; median of {REPEATS} runs (minimum to maximum). Goal: at most {GOAL_US:g} µs.\n",
        "| by | µs per item | load generator alone, µs | items per batch | in time or served |",
        "|---|---|---|---|---|",
    ]
    for way, found in document["costs"].items():
        mine = [run for run in document["runs"] if run["way"] == way]
        batch = median([run["items"] / run["batches"] for run in mine])
        good = median([run.get("in_time", run["served"]) / run["items"] for run in mine])
        lines.append(
            f"| `{way}` | {found['microseconds']:.1f} ({min(found['samples']):.1f} to "
            f"{max(found['samples']):.1f}) | {found['load_alone']:.1f} "
            f"({min(found['load_alone_samples']):.1f} to {max(found['load_alone_samples']):.1f}) | "
            f"{batch:.1f} | {good:.2%} |"
        )
    if document["busy_before"] > 0.1:
        busy = document["busy_before"]
        lines.append(f"\nThe machine was {busy:.0%} busy before the run began.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
