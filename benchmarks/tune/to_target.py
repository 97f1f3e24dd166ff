"""One training, timed until it reaches its target."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import rightbatch as rb
from benchmarks.tune.tasks import Run, Task, yolo_settings
from benchmarks.workloads import factory
from rightbatch._noise import WeightAverage, measure_noise
from rightbatch._train.growth import Growth
from rightbatch._training.distributed import Processes
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import LoopPlan
from rightbatch._training.scaling import scale_optimizer

EVERY = 512
"""Examples between two evaluations."""


class _Clock:
    """Steps, examples and seconds of a training; evaluations are no part of the time.

    The target is reached where the mean of three evaluations is, at the middle one, between two of
    which the crossing is interpolated.
    """

    def __init__(self, w: rb.Workload, task: Task) -> None:
        data: Any = w.evaluation_data
        self._w, self._target = w, task.target
        self._unseen = w.collate([data[i] for i in range(len(data))])
        self._seen: list[tuple[float, float, float, float]] = []  # loss, then the counts
        self._due = 0
        self.steps, self.examples, self.seconds = 0, 0, 0.0
        self.crossing: tuple[float, float, float] | None = None
        self.is_lost = False

    def stepped(self, examples: int, seconds: float) -> None:
        self.steps, self.examples = self.steps + 1, self.examples + examples
        self.seconds += seconds
        if self.examples < self._due:
            return
        self._due = self.examples + EVERY
        with torch.no_grad():
            loss = float(self._w.loss(self._w.model, self._unseen))
        self._seen.append((loss, self.steps, self.examples, self.seconds))
        self.crossing = _crossing(self._seen, self._target)
        self.is_lost = not math.isfinite(loss)


def train_to_target(task: Task, size: int, rate: float, seed: int, most_seconds: float) -> Run:
    """A plain loop."""
    w = _built(task, rate, seed)
    clock, data = _Clock(w, task), w.data
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(data), generator=generator).split(size):  # type: ignore[arg-type]
            started = time.perf_counter()
            _step(w, chosen.tolist())
            clock.stepped(len(chosen), time.perf_counter() - started)
            if clock.crossing or clock.is_lost or clock.seconds > most_seconds:
                at = clock.crossing or (clock.steps, clock.examples, clock.seconds)
                reached = clock.crossing is not None
                return Run(task.name, task.target, size, rate, seed, reached, *at)


def _built(task: Task, rate: float, seed: int) -> rb.Workload:
    with tempfile.TemporaryDirectory() as folder:
        load = factory(task.name, Path(folder)).load()
    torch.manual_seed(seed)
    w: rb.Workload = load()
    for group in w.optimizer.param_groups:
        group["lr"] = rate
    return w


def _step(w: rb.Workload, chosen: list[int]) -> None:
    data: Any = w.data
    batch = w.collate([data[index] for index in chosen])
    w.optimizer.zero_grad()
    w.loss(w.model, batch).backward()
    w.optimizer.step()


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


@dataclass(frozen=True)
class GrownRun(Run):
    """`sizes` are the batch sizes that it went through; `batch_size` is the first."""

    sizes: tuple[int, ...] = ()


def grown_to_target(task: Task, plan: rb.Plan, rate: float, seed: int) -> GrownRun:
    """As `train_to_target`, from the plan's size on, with `train --adapt`'s growth; its windows are
    part of the time."""
    w = _built(task, rate, seed)
    growth = Growth(plan.samples, epochs=None)
    as_planned = LoopPlan(batch_size=plan.batch_size, epochs=1)
    growth.on_start(WorkloadLoop(w, as_planned, Processes(torch.device("cpu"))))
    clock, average = _Clock(w, task), WeightAverage(w.model)
    data: Any = w.data
    generator, other = (torch.Generator().manual_seed(seed + i) for i in (0, 1))
    size, sizes = plan.batch_size, [plan.batch_size]

    def parts() -> Any:
        order = torch.randperm(len(data), generator=other)
        for chosen in order.split(size):
            batch = w.collate([data[index] for index in chosen.tolist()])
            yield (lambda batch=batch: w.loss(w.model, batch)), len(chosen), float(w.count(batch))

    while True:
        order, position = torch.randperm(len(data), generator=generator).tolist(), 0
        while position < len(order):
            started = time.perf_counter()
            _step(w, order[position : position + size])
            average.update()
            seconds = growth.window_seconds(clock.seconds)
            if seconds is not None:
                seen = measure_noise(w.model, average, parts, len(data), seconds)
                found = growth.grown(seen, size, clock.seconds)
                if found is not None:
                    rule = found.scaling
                    scale_optimizer(w.optimizer, rule.batch_factor, rule.learning_rate_factor)
                    size = found.batch_size
                    sizes.append(size)
            examples = len(order[position : position + size])
            position += size
            clock.stepped(examples, time.perf_counter() - started)
            if clock.crossing or clock.is_lost or clock.seconds > 4 * task.most_seconds:
                at = clock.crossing or (clock.steps, clock.examples, clock.seconds)
                return GrownRun(
                    task.name,
                    task.target,
                    sizes[0],
                    rate,
                    seed,
                    clock.crossing is not None,
                    *at,
                    sizes=tuple(sizes),
                )
