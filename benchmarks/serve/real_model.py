"""YOLO26n at 320 pixels on ONNX Runtime: the most frames a second with 99% in target.

`python -m benchmarks.serve.real_model [--quick]`: every system of `peers.systems` at three targets,
with Poisson arrivals and with cameras; searched by open loads whose latencies count from the
scheduled moment. Needs `make peers`, and about 40 minutes of a machine that does nothing else.
Every run is stored as it ends, and what was cut goes on from there; `--fresh` starts anew. A run
that failed while other processes took of the machine is tried again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import _record
from benchmarks._record import about, say
from benchmarks.serve.model import onnx_model
from benchmarks.serve.others import Others, wait_for_quiet
from benchmarks.serve.peers.systems import ROOT, SYSTEMS, Config, Load, Put, System
from benchmarks.serve.peers.worker import THREADS, Worker, pictures
from benchmarks.serve.table import table
from rightbatch._serve.load.arrivals import Kind
from rightbatch._serve.load.early_stopping import SHARE
from rightbatch._serve.load.load_test import LoadResult
from rightbatch._serve.load.rate_search import largest_rate

NAME = "serve_peers"
MODELS = Path(tempfile.gettempdir()) / "rightbatch-benchmark-models"
_STEP = 3.0  # frames a second between two rates that are told apart
_SMALL = 4  # settings of a grid of which all are tried
_GUESS = 0.6  # of what the worker serves in batches, where the first search of a system starts
_GRID_TARGET, _GRID_STEP, _GRID_SEED = 0.1, 10.0, 1000
_SIZES = (1, 2, 4, 8, 16)
_OTHERS, _TRIES, _PATIENCE = 0.15, 3, 5.0  # so many cores taken by others: a run that failed is
# tried again, so many times and after so many seconds at most


@dataclass(frozen=True)
class Plan:
    """Seconds of a run, and of one of the grid; of a large one every `grid_every`th setting."""

    targets: tuple[float, ...] = (0.05, 0.1, 0.2)
    kinds: tuple[Kind, ...] = ("poisson", "cameras")
    seconds: float = 4.0
    grid_seconds: float = 3.0
    grid_every: int = 1


QUICK = Plan(targets=(0.1,), seconds=2.0, grid_seconds=1.0, grid_every=5)


class Campaign:
    """All runs. Each is a line of `path`, written as it ends, and taken from there if it is.

    So are the measurements of batches, of which the first says where searches start: what goes on
    asks for the same rates again.
    """

    def __init__(self, plan: Plan, path: Path, model: str) -> None:
        self.plan, self.path, self.model = plan, path, model
        lines = path.read_text().splitlines() if path.exists() else []
        stored: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self.rows = [one for one in stored if "milliseconds" not in one]
        self.service = [one for one in stored if "milliseconds" in one]
        self.cells: list[dict[str, Any]] = []

    def grid(self, system: System) -> None:
        """Every setting of a system, at a rate that the first of them just bears."""
        configs = self._configs(system)
        if len(configs) == 1:
            return
        seconds = self.plan.grid_seconds
        rates: dict[Kind, float] = {}
        for config in configs:
            with Opened(self, system, config, _GRID_TARGET) as opened:
                for kind in self._kinds(system):
                    if kind not in rates:
                        rates[kind] = opened.search(kind, self._guess(), _GRID_STEP, seconds)
                    opened.attempt(kind, rates[kind] or _GRID_STEP, _GRID_SEED, seconds)

    def cell(self, system: System, kind: Kind, target: float) -> None:
        """The largest rate of a system."""
        config = self._best_config(system, kind, target)
        shorter = [
            cell["frames_per_second"]
            for cell in self.cells
            if (cell["system"], cell["http"], cell["kind"]) == (system.name, system.is_http, kind)
        ]
        guess = max(shorter, default=0.0) or self._guess()
        with Opened(self, system, config, target) as opened:
            rate = opened.search(kind, guess, _STEP, self.plan.seconds)
            rows = [opened.row(kind, rate, seed, self.plan.seconds) for seed in (0, 1)]
        self.cells.append(
            {
                "system": system.name,
                "http": system.is_http,
                "kind": kind,
                "target_ms": 1000 * target,
                "config": asdict(config),
                "frames_per_second": rate,
                "runs": [row for row in rows if row],
            }
        )
        say(f"{system.name}, {kind}, {1000 * target:g} ms: {rate:g}/s ({config})")

    def measure_service(self, sizes: tuple[int, ...] = _SIZES) -> None:
        """Milliseconds of batches: whether they help, and whether the machine stays the same."""
        worker, images = Worker(self.model), pictures()
        taken: dict[int, list[float]] = {size: [] for size in sizes}
        for size in sizes:
            worker(images[:size])
        for _ in range(10):
            for size in sizes:
                start = time.perf_counter()
                worker(images[:size])
                taken[size].append(1000 * (time.perf_counter() - start))
        medians = {str(size): statistics.median(times) for size, times in taken.items()}
        self.service.append({"at": time.time(), "milliseconds": medians})
        self.store(self.service[-1])

    def store(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _guess(self) -> float:
        first = self.service[0]["milliseconds"]
        return _GUESS * max(1000 * int(size) / taken for size, taken in first.items())

    def _configs(self, system: System) -> tuple[Config, ...]:
        every = self.plan.grid_every if len(system.configs) > _SMALL else 1
        return system.configs[::every]

    def _kinds(self, system: System) -> tuple[Kind, ...]:
        return tuple(kind for kind in self.plan.kinds if kind in system.kinds)

    def _best_config(self, system: System, kind: Kind, target: float) -> Config:
        """Of the grid: most in time, then the lowest 99th percentile."""
        configs = self._configs(system)
        if len(configs) == 1:
            return configs[0]

        def merit(config: Config) -> tuple[float, float]:
            (row,) = [
                row
                for row in self.rows
                if row["seed"] == _GRID_SEED
                and (row["system"], row["http"], row["kind"]) == (system.name, system.is_http, kind)
                and row["config"] == asdict(config)
            ]
            counted = row["in_time"].get(str(target), 0)
            return counted / row["offered"], -(row["p99_ms"] or math.inf)

        return max(configs, key=merit)


class Opened:
    """A system in one setting, started when the first run is needed that is not stored yet."""

    def __init__(self, campaign: Campaign, system: System, config: Config, target: float) -> None:
        self._campaign, self._system, self._config = campaign, system, config
        self._target = target
        self._stop_at = target if system.knows_target else max(campaign.plan.targets)
        self._open = ExitStack()
        self._put: Put | None = None

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)

    def search(self, kind: Kind, guess: float, step: float, seconds: float) -> float:
        return largest_rate(
            lambda rate, seed: self.attempt(kind, rate, seed, seconds), guess, step
        ).rate

    def attempt(self, kind: Kind, rate: float, seed: int, seconds: float) -> LoadResult:
        row = self.row(kind, rate, seed, seconds) or self._run(kind, rate, seed, seconds)
        # Of the latencies a search asks no more than how many were in time.
        in_time = row["in_time"][str(self._target)]
        latencies = [0.0] * in_time + [math.inf] * (row["offered"] - in_time)
        return LoadResult(
            self._target, row["seconds"], row["scheduled"], row["offered"], {}, 0.0, latencies
        )

    def _in_time(self, result: LoadResult) -> int:
        return sum(latency <= self._target for latency in result.latencies)

    def row(self, kind: Kind, rate: float, seed: int, seconds: float) -> dict[str, Any] | None:
        key = self._key(kind, rate, seed, seconds)
        return next((row for row in self._campaign.rows if key.items() <= row.items()), None)

    def _key(self, kind: Kind, rate: float, seed: int, seconds: float) -> dict[str, Any]:
        return {
            "system": self._system.name,
            "http": self._system.is_http,
            "config": asdict(self._config),
            "told_ms": 1000 * self._target if self._system.knows_target else None,
            "kind": kind,
            "asked_rate": rate,
            "seed": seed,
            "asked_seconds": seconds,
        }

    def _run(self, kind: Kind, rate: float, seed: int, seconds: float) -> dict[str, Any]:
        if self._put is None:
            opening = self._system.open(self._campaign.model, self._config, self._target)
            self._put = self._open.enter_context(opening)
        load = Load(kind, rate, seconds, seed, self._stop_at)
        for _ in range(_TRIES):
            others = Others()
            result, client = self._put(load)
            cores = others.cores()
            if cores <= _OTHERS or self._in_time(result) >= SHARE * result.scheduled:
                break
            say(f"{self._system.name}: again, since others took {cores:.2f} cores ({result})")
            wait_for_quiet(_OTHERS, _PATIENCE)
        row = self._key(kind, rate, seed, seconds) | {
            "at": time.time(),
            "stop_at_ms": 1000 * self._stop_at,
            "seconds": result.seconds,
            "scheduled": result.scheduled,
            "offered": result.offered,
            "in_time": {
                str(target): sum(latency <= target for latency in result.latencies)
                for target in {*self._campaign.plan.targets, self._target}
                if target <= self._stop_at
            },
            "dropped": result.dropped,
            "p50_ms": _milliseconds(result.quantile(0.5)),
            "p99_ms": _milliseconds(result.quantile(0.99)),
            "client_lag_ms": _milliseconds(result.lag),
            "client_cores": client,
            "others_cores": round(cores, 3),
        }
        self._campaign.rows.append(row)
        self._campaign.store(row)
        say(f"{self._system.name} ({self._config}): {result}")
        return row


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)


def _versions() -> dict[str, str]:
    """Of the peers' environment."""
    packages = ("litserve", "ray", "bentoml", "onnxruntime", "uvicorn", "numpy")
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    python = ROOT / os.environ.get("PEERS_VENV", ".venv-peers") / "bin" / "python"
    shown = subprocess.run(
        [str(python), "-c", code, *packages], check=True, capture_output=True, text=True
    )
    return dict(zip(packages, shown.stdout.split(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="ten minutes; nothing is stored")
    parser.add_argument("--fresh", action="store_true", help="forget the runs that are stored")
    parser.add_argument("--only", nargs="*", default=[], help="systems, by parts of their names")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the servers as well
    plan = QUICK if asked.quick else Plan()
    folder = Path(tempfile.mkdtemp()) if asked.quick else _record.RESULTS
    path = folder / f"{NAME}_runs.jsonl"
    if asked.fresh:
        path.unlink(missing_ok=True)
    chosen = [
        system
        for system in SYSTEMS
        if not asked.only or any(part.lower() in system.name.lower() for part in asked.only)
    ]
    campaign = Campaign(plan, path, str(onnx_model(MODELS)))
    document = {
        "about": about() | {"peers": _versions()},
        "busy_before": psutil.cpu_percent(2.0) / 100,
        "threads": THREADS,
        "share": SHARE,
        "plan": asdict(plan),
    }
    if document["busy_before"] > 0.1:
        say(f"this machine is busy ({document['busy_before']:.0%}): the numbers will be too low")
    campaign.measure_service()
    for system in chosen:
        campaign.grid(system)
    for kind in plan.kinds:
        for target in plan.targets:
            for system in chosen:
                if kind in system.kinds:
                    campaign.cell(system, kind, target)
            campaign.measure_service()
            found = document | {"service": campaign.service, "cells": campaign.cells}
            if not asked.quick:
                _record.save(NAME, found, table(found))
    if asked.quick:
        print(table(found))


if __name__ == "__main__":
    main()
