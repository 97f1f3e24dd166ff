"""What `tune` chooses, and growing batches, timed beside other sizes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rightbatch as rb
from benchmarks._record import say
from benchmarks.tune.runs import best_by_size, geometric
from benchmarks.tune.tasks import TASKS, Run, Task, yolo_settings
from benchmarks.tune.to_target import grown_to_target, train_to_target, yolo_to_target
from benchmarks.workloads import factory

DEFAULT, BUDGET = 16, "90s"


def choice() -> dict[str, Any]:
    """`tune` three times; then its choice, at the rate that it says, beside other sizes.

    Sizes take turns with every seed; the default runs twice (A/A).
    """
    results = {}
    for task in TASKS.values():
        points, rate = best_by_size(task), task.base_rate
        plans = [tuned(task, seed) for seed in range(3)]
        for plan in plans:
            say(f"{task.name}: {plan}")
        plan = plans[0]
        sizes = {
            "default": (DEFAULT, rate),
            "tuned": (plan.batch_size, rate * plan.learning_rate_factor),
            "best": _fastest(points),
            "largest": (max(points), points[max(points)][0].learning_rate),
            "default again": (DEFAULT, rate),
        }
        train = yolo_to_target if task.name == "yolo26n" else train_to_target
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in sizes}
        for seed in task.seeds[:3]:
            for name, (size, its_rate) in sizes.items():
                run = train(task, size, its_rate, 100 + seed, 4 * task.most_seconds)
                say(f"{name}: {run}")
                runs[name].append(vars(run))
        results[task.name] = {"plans": [p.to_dict() for p in plans], "runs": runs}
    return results


def growth() -> dict[str, Any]:
    """Batches that grow from the tuned size, beside that size and the best one."""
    results = {}
    for task in TASKS.values():
        if task.name == "yolo26n":
            continue  # Ultralytics owns its loop
        points, rate = best_by_size(task), task.base_rate
        plan = tuned(task, 0)
        tuned_rate = rate * plan.learning_rate_factor
        best_size, best_rate = _fastest(points)
        makers: dict[str, Callable[[int], Any]] = {
            "tuned": lambda seed, t=task, p=plan, r=tuned_rate: train_to_target(
                t, p.batch_size, r, seed, 4 * t.most_seconds
            ),
            "growing": lambda seed, t=task, p=plan, r=tuned_rate: grown_to_target(t, p, r, seed),
            "best": lambda seed, t=task, s=best_size, r=best_rate: train_to_target(
                t, s, r, seed, 4 * t.most_seconds
            ),
        }
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in makers}
        for seed in task.seeds:
            for name, make in makers.items():
                run = make(200 + seed)
                say(f"{name}: {run}")
                runs[name].append(vars(run))
        results[task.name] = runs
    return results


def tuned(task: Task, seed: int) -> rb.Plan:
    """A plan for the workload as it is, with its learning rate for the default size."""
    with tempfile.TemporaryDirectory() as folder:
        made = factory(task.name, Path(folder))
        target = f"evaluation_loss={task.target}"
        if task.name == "yolo26n":
            settings = yolo_settings(DEFAULT, task.base_rate)
            left_out = ("batch", "nbs", "device")
            made.overrides.update({k: v for k, v in settings.items() if k not in left_out})
            target = f"loss={task.target}"
        return rb.tune(made, target=target, budget=BUDGET, device="cpu", seed=seed, progress=False)


def _fastest(points: dict[int, list[Run]]) -> tuple[int, float]:
    size = min(points, key=lambda size: geometric([run.seconds for run in points[size]]))
    return size, points[size][0].learning_rate
