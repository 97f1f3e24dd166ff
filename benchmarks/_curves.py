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
MOST_EXPONENT = 4


@dataclass(frozen=True)
class Task:
    """What is trained to which target.

    `target` is the loss on unseen data (of the last 256 training images, for YOLO). Learning rates
    are tried with the first seed, in factors of 2 from `base_rate` at batch size 16 times `growth`
    per doubling, until the best has a worse one on either side; it is run with all seeds. YOLO has
    one for all sizes, the one that Ultralytics' `optimizer=auto` takes for this data set.
    """

    name: str
    target: float
    sizes: tuple[int, ...]
    base_rate: float = 0.0
    growth: float = 1.0
    is_rate_given: bool = False
    seeds: tuple[int, ...] = SEEDS
    most_seconds: float = 120.0


TASKS = {
    task.name: task
    for task in (
        Task("cifar", 1.65, (4, 8, 16, 32, 64, 128, 256), 0.02, 1.41),
        Task("shakespeare", 2.2, (4, 8, 16, 32, 64, 128, 256), 0.008, 1.41),
        Task("yolo26n", 4.0, (4, 8, 16, 32, 64, 128), 0.00143, 1.0, True, (0, 1, 2, 3)),
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


def yolo_settings(size: int, rate: float) -> dict[str, Any]:
    """Ultralytics' training with an update every `size` images, one optimizer and one rate."""
    return {
        "imgsz": 96,
        "batch": size,
        "nbs": size,
        "optimizer": "AdamW",
        "lr0": rate,
        "lrf": 1.0,
        "warmup_epochs": 0,
        "close_mosaic": 0,
        "workers": 0,
        "device": "cpu",
        "val": False,
        "save": False,
        "plots": False,
        "verbose": False,
    }


def yolo_to_target(task: Task, size: int, rate: float, seed: int, most_seconds: float) -> Run:
    """The target is reached where the mean loss of the last 256 images (augmented) is."""
    from ultralytics import YOLO

    class Over(Exception):
        pass

    losses: list[float] = []
    began = [0.0]
    last = -(-256 // size)

    def after_batch(trainer: Any) -> None:
        losses.append(float(trainer.loss) / trainer.batch_size)
        mean = statistics.fmean(losses[-last:])
        late = time.perf_counter() - began[0] > most_seconds
        if late or (len(losses) >= last and mean <= task.target):
            raise Over

    seconds = 0.0
    with tempfile.TemporaryDirectory() as folder:
        made = factory(task.name, Path(folder)).load()
        arguments = {k: v for k, v in made.overrides.items() if k not in ("model", "imgsz")}
        model = YOLO(made.overrides["model"])
        model.add_callback("on_train_start", lambda _: began.__setitem__(0, time.perf_counter()))
        model.add_callback("on_train_batch_end", after_batch)
        settings = yolo_settings(size, rate) | {"project": folder, "name": "run", "seed": seed}
        try:
            model.train(**arguments, **settings, epochs=10_000)
        except Over:
            seconds = time.perf_counter() - began[0]
        images = len(model.trainer.train_loader.dataset)
    steps_per_epoch = -(-images // size)
    epochs, rest = divmod(len(losses), steps_per_epoch)
    examples = epochs * images + rest * size
    reached = statistics.fmean(losses[-last:]) <= task.target
    return Run(task.name, task.target, size, rate, seed, reached, len(losses), examples, seconds)


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
