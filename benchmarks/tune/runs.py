"""How many steps, examples and seconds a training takes to a target, batch size by batch size.

`python -m benchmarks.tune.runs [TASK ...]` makes the runs that are missing. Each is stored by
itself in `results/tune_runs.jsonl` as soon as it has ended, so that it can be stopped at any time.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks._record import RESULTS
from benchmarks.tune.tasks import TASKS, Run, Task
from benchmarks.tune.to_target import train_to_target, yolo_to_target

RUNS = RESULTS / "tune_runs.jsonl"
MOST_EXPONENT = 4


def measure(task: Task) -> Iterator[Run]:
    """Makes the runs that are missing; sizes take turns, so that a noisy hour hits them all."""
    done = {_key(run): run for run in stored() if run.task == task.name}

    def run(size: int, rate: float, seed: int, most_seconds: float) -> Run:
        key = (task.name, task.target, size, round(rate, 8), seed)
        if key not in done:
            train = yolo_to_target if task.name == "yolo26n" else train_to_target
            done[key] = train(task, size, rate, seed, most_seconds)
            with RUNS.open("a") as file:
                file.write(json.dumps(asdict(done[key])) + "\n")
        return done[key]

    best: dict[int, Run] = {}
    tried: dict[int, dict[int, Run]] = {size: {} for size in task.sizes}
    while todo := [
        (size, exponent) for size in task.sizes for exponent in _next(task, tried[size])
    ]:
        for size, exponent in todo:
            rate = _rate(task, size) * 2.0**exponent
            # A rate that takes half as long again as the best so far is not the best.
            most = 1.5 * best[size].seconds if size in best else task.most_seconds
            this = tried[size][exponent] = run(size, rate, task.seeds[0], most)
            yield this
            if this.reached and (size not in best or this.examples < best[size].examples):
                best[size] = this
    for seed in task.seeds[1:]:
        for size in task.sizes:
            if size in best:
                yield run(size, best[size].learning_rate, seed, task.most_seconds)


def _next(task: Task, tried: dict[int, Run]) -> list[int]:
    """The exponent of 2 to try next: a neighbour of the best one that is missing."""
    if not tried:
        return [0]
    if task.is_rate_given:
        return []
    examples = {e: run.examples if run.reached else math.inf for e, run in tried.items()}
    best = min(examples, key=lambda e: (examples[e], e))
    missing = [e for e in (best + 1, best - 1) if e not in tried and abs(e) <= MOST_EXPONENT]
    return missing[:1]


def _rate(task: Task, size: int) -> float:
    """To two digits: the point of a grid, not a fitted value."""
    return float(f"{task.base_rate * task.growth ** math.log2(size / 16):.2g}")


def stored() -> list[Run]:
    """All runs so far."""
    if not RUNS.exists():
        return []
    return [Run(**json.loads(line)) for line in RUNS.read_text().splitlines()]


def geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def best_by_size(task: Task) -> dict[int, list[Run]]:
    """Of each size the rate with the fewest examples, of those that every seed was run with."""
    found: dict[int, dict[float, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in stored():
        if run.task == task.name and run.target == task.target and run.reached:
            found[run.batch_size][run.learning_rate].append(run)
    best = {}
    for size, by_rate in sorted(found.items()):
        whole = [runs for runs in by_rate.values() if len(runs) == len(task.seeds)]
        if whole:
            best[size] = min(whole, key=lambda runs: geometric([run.examples for run in runs]))
    return best


def _key(run: Run) -> tuple[Any, ...]:
    return run.task, run.target, run.batch_size, round(run.learning_rate, 8), run.seed


def main() -> None:
    for name in sys.argv[1:] or TASKS:
        for run in measure(TASKS[name]):
            print(run, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
