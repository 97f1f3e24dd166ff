"""How many steps, examples and seconds a training takes to a target, batch size by batch size.

`python -m benchmarks._curves [TASK ...]` makes the runs that are missing. Each is stored by itself
in `results/tune_runs.jsonl` as soon as it has ended, so that it can be stopped at any time.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks._record import RESULTS
from benchmarks.workloads import factory

RUNS = RESULTS / "tune_runs.jsonl"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Task:
    """What is trained to which target.

    `target` is the loss on unseen data (of the last 256 training images, for YOLO). Learning rates
    are `base_rate` at batch size 16 times `growth` per doubling, and factors of 2 around that;
    `tries` of them are run with the first seed, and the best with all seeds.
    """

    name: str
    target: float
    sizes: tuple[int, ...]
    base_rate: float = 0.0
    growth: float = 1.0
    tries: tuple[int, ...] = ()
    seeds: tuple[int, ...] = SEEDS
    most_seconds: float = 120.0


TASKS = {
    task.name: task
    for task in (
        Task("cifar", 1.6, (4, 8, 16, 32, 64, 128, 256), 0.02, 1.5, (0, 1, -1, 2)),
        Task("shakespeare", 2.2, (4, 8, 16, 32, 64, 128, 256), 0.004, 1.4, (0, 1, -1, 2)),
    )
}


@dataclass(frozen=True)
class Run:
    """One training. `steps`, `examples` and `seconds` are those to the target, if `reached`."""

    task: str
    target: float
    batch_size: int
    learning_rate: float
    seed: int
    reached: bool
    steps: float
    examples: float
    seconds: float


def measure(task: Task) -> Iterator[Run]:
    """Makes the runs that are missing; sizes take turns, so that a noisy hour hits them all."""
    done = {_key(run): run for run in stored() if run.task == task.name}

    def run(size: int, rate: float, seed: int, most_seconds: float) -> Run:
        key = (task.name, task.target, size, round(rate, 8), seed)
        if key not in done:
            done[key] = train_to_target(task, size, rate, seed, most_seconds)
            with RUNS.open("a") as file:
                file.write(json.dumps(asdict(done[key])) + "\n")
        return done[key]

    best: dict[int, Run] = {}
    for exponent in task.tries:
        for size in task.sizes:
            rate = _rate(task, size) * 2.0**exponent
            # A rate that takes half as long again as the best so far is not the best.
            most = 1.5 * best[size].seconds if size in best else task.most_seconds
            tried = run(size, rate, task.seeds[0], most)
            yield tried
            if tried.reached and (size not in best or tried.examples < best[size].examples):
                best[size] = tried
    for seed in task.seeds[1:]:
        for size in task.sizes:
            if size in best:
                yield run(size, best[size].learning_rate, seed, task.most_seconds)


def train_to_target(task: Task, size: int, rate: float, seed: int, most_seconds: float) -> Run:
    """Evaluations, on a fixed sample every 512 examples, are no part of the time.

    The target is reached where the mean of three evaluations is, at the middle one, between two of
    which the crossing is interpolated.
    """
    every = 512
    with tempfile.TemporaryDirectory() as folder:
        load = factory(task.name, Path(folder)).load()
    torch.manual_seed(seed)
    w = load()
    assert w.evaluation_data is not None
    for group in w.optimizer.param_groups:
        group["lr"] = rate
    unseen = w.collate([w.evaluation_data[i] for i in range(len(w.evaluation_data))])
    generator = torch.Generator().manual_seed(seed)
    seconds, steps, examples, due = 0.0, 0, 0, 0
    seen: list[tuple[float, float, float, float]] = []  # loss, steps, examples, seconds
    while seconds < most_seconds:
        for chosen in torch.randperm(len(w.data), generator=generator).split(size):
            started = time.perf_counter()
            batch = w.collate([w.data[index] for index in chosen.tolist()])
            w.optimizer.zero_grad()
            w.loss(w.model, batch).backward()
            w.optimizer.step()
            seconds += time.perf_counter() - started
            steps, examples = steps + 1, examples + len(chosen)
            if examples < due:
                continue
            due = examples + every
            with torch.no_grad():
                seen.append((float(w.loss(w.model, unseen)), steps, examples, seconds))
            if crossing := _crossing(seen, task.target):
                return Run(task.name, task.target, size, rate, seed, True, *crossing)
            if seconds >= most_seconds or not math.isfinite(seen[-1][0]):
                break
        if not math.isfinite(seen[-1][0]):
            break
    return Run(task.name, task.target, size, rate, seed, False, steps, examples, seconds)


def _crossing(seen: list[tuple[float, ...]], target: float) -> tuple[float, float, float] | None:
    """Steps, examples and seconds at which the smoothed loss went through the target."""
    if len(seen) < 4:
        return None
    before = statistics.fmean(loss for loss, *_ in seen[-4:-1])
    after = statistics.fmean(loss for loss, *_ in seen[-3:])
    if after > target:
        return None
    share = (before - target) / (before - after) if before > after else 1.0
    share = min(max(share, 0.0), 1.0)
    first, second = seen[-3][1:], seen[-2][1:]
    at = [a + share * (b - a) for a, b in zip(first, second, strict=True)]
    return at[0], at[1], at[2]


def _rate(task: Task, size: int) -> float:
    """To two digits: the point of a grid, not a fitted value."""
    return float(f"{task.base_rate * task.growth ** math.log2(size / 16):.2g}")


def stored() -> list[Run]:
    """All runs so far."""
    if not RUNS.exists():
        return []
    return [Run(**json.loads(line)) for line in RUNS.read_text().splitlines()]


def _key(run: Run) -> tuple[Any, ...]:
    return run.task, run.target, run.batch_size, round(run.learning_rate, 8), run.seed


def main() -> None:
    for name in sys.argv[1:] or TASKS:
        for run in measure(TASKS[name]):
            print(run, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
