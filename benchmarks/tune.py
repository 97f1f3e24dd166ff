"""`tune` against trainings at every size: is its choice as fast as the best of the grid?

`python -m benchmarks.tune [PART ...]` runs `curves` (long; resumes), `choice` and `growth`, or
those named, keeping the others' results.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rightbatch as rb
from benchmarks._curves import measure, stored
from benchmarks._record import RESULTS, about, save
from benchmarks._tasks import TASKS, Run, Task, yolo_settings
from benchmarks._to_target import grown_to_target, train_to_target, yolo_to_target
from benchmarks.workloads import factory

DEFAULT, BUDGET = 16, "90s"
RESAMPLES = 2000


def curves() -> dict[str, Any]:
    """Makes the runs that are missing, and fits S = S_min + E_min/B to each size's best rate."""
    results = {}
    for task in TASKS.values():
        for run in measure(task):
            say(str(run))
        points = best_by_size(task)
        steps = {size: _geometric([run.steps for run in runs]) for size, runs in points.items()}
        s_min, e_min, error = fit_curve(steps)
        results[task.name] = {
            "target": task.target,
            "s_min": s_min,
            "e_min": e_min,
            "b_crit": e_min / s_min,
            "rms_log_error": error,
            "sizes": {
                size: {
                    "learning_rate": runs[0].learning_rate,
                    "steps": [run.steps for run in runs],
                    "seconds": [run.seconds for run in runs],
                }
                for size, runs in points.items()
            },
        }
    return results


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
            best[size] = min(whole, key=lambda runs: _geometric([run.examples for run in runs]))
    return best


def fit_curve(steps: dict[int, float]) -> tuple[float, float, float]:
    """S_min, E_min and the rms error of log S, by Gauss-Newton on the logarithms."""
    sizes, wanted = list(steps), [math.log(value) for value in steps.values()]
    a, b = math.log(min(steps.values()) / 2), math.log(min(s * n for n, s in steps.items()))
    for _ in range(200):
        errors, rows = [], []
        for size, log_s in zip(sizes, wanted, strict=True):
            fixed, falling = math.exp(a), math.exp(b) / size
            errors.append(log_s - math.log(fixed + falling))
            rows.append((fixed / (fixed + falling), falling / (fixed + falling)))
        aa, ab, bb = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
        ra, rb_ = (sum(r[i] * e for r, e in zip(rows, errors, strict=True)) for i in (0, 1))
        determinant = aa * bb - ab * ab
        step_a = (bb * ra - ab * rb_) / determinant
        step_b = (aa * rb_ - ab * ra) / determinant
        a, b = a + max(min(step_a, 0.5), -0.5), b + max(min(step_b, 0.5), -0.5)
    return math.exp(a), math.exp(b), math.sqrt(statistics.fmean(e * e for e in errors))


def choice() -> dict[str, Any]:
    """`tune` three times; then its choice, at the rate that it says, beside other sizes.

    Sizes take turns with every seed; the default runs twice (A/A).
    """
    results = {}
    for task in TASKS.values():
        points = best_by_size(task)
        rate = points[DEFAULT][0].learning_rate
        plans = [tuned(task, rate, seed) for seed in range(3)]
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
        points = best_by_size(task)
        rate = points[DEFAULT][0].learning_rate
        plan = tuned(task, rate, 0)
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


def tuned(task: Task, rate: float, seed: int) -> rb.Plan:
    """A plan for a workload with the rate that is best at the default size."""
    with tempfile.TemporaryDirectory() as folder:
        made = factory(task.name, Path(folder))
        target = f"evaluation_loss={task.target}"
        if task.name == "yolo26n":
            settings = yolo_settings(DEFAULT, rate)
            left_out = ("batch", "nbs", "device")
            made.overrides.update({k: v for k, v in settings.items() if k not in left_out})
            target = f"loss={task.target}"
        return rb.tune(made, target=target, budget=BUDGET, device="cpu", seed=seed, progress=False)


def _fastest(points: dict[int, list[Run]]) -> tuple[int, float]:
    size = min(points, key=lambda size: _geometric([run.seconds for run in points[size]]))
    return size, points[size][0].learning_rate


def ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of one/other over paired seeds, with a 95% bootstrap interval."""
    logs = [math.log(a / b) for a, b in zip(one, other, strict=True)]
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(logs, k=len(logs))) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
    return math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high)


def table(results: dict[str, Any]) -> str:
    text = ""
    if "curves" in results:
        text += (
            "| task | target | S_min | E_min | B_crit | rms log error | noise scale at the target "
            "| ÷ B_crit |\n|---|---|---|---|---|---|---|---|\n"
        )
        for name, found in results["curves"].items():
            phi = ""
            share = ""
            if name in results.get("choice", {}):
                values = [
                    plan["noise_scale"]["value"]
                    for plan in results["choice"][name]["plans"]
                    if plan["noise_scale"]["value"] is not None
                ]
                phi = ", ".join(f"{value:.0f}" for value in values) + " (three runs)"
                share = f"{statistics.median(values) / found['b_crit']:.2f}"
            text += (
                f"| {name} | loss {found['target']} | {found['s_min']:.0f} | {found['e_min']:.0f} "
                f"| {found['b_crit']:.0f} | {found['rms_log_error']:.1%} | {phi} | {share} |\n"
            )
    if "choice" in results:
        text += (
            "\n| task | tuned | ÷ best of the grid | default 16 ÷ tuned | largest of the grid ÷ "
            "tuned | with the tuning, ÷ best | A/A |\n|---|---|---|---|---|---|---|\n"
        )
        for name, found in results["choice"].items():
            text += _choice_row(name, found)
    if "growth" in results:
        text += (
            "\n| task | growing ÷ best fixed size, time | steps | growing ÷ tuned size, time "
            "| steps | sizes |\n|---|---|---|---|---|---|\n"
        )
        for name, runs in results["growth"].items():
            columns = []
            for other in ("best", "tuned"):
                for key in ("seconds", "steps"):
                    values = ([run[key] for run in runs[kind]] for kind in ("growing", other))
                    columns.append(_with_interval(ratio(*values)))
            grown = " · ".join(
                " → ".join(str(size) for size in run["sizes"]) for run in runs["growing"]
            )
            text += f"| {name} | {' | '.join(columns)} | {grown} |\n"
    return text


def _choice_row(name: str, found: dict[str, Any]) -> str:
    seconds = {kind: [run["seconds"] for run in runs] for kind, runs in found["runs"].items()}
    plan = found["plans"][0]
    included = [value + plan["seconds"] for value in seconds["tuned"]]
    sizes = ", ".join(str(each["batch_size"]) for each in found["plans"])
    best = found["runs"]["best"][0]["batch_size"]
    cells = [
        f"{_with_interval(ratio(seconds['tuned'], seconds['best']))} ({best})",
        _with_interval(ratio(seconds["default"], seconds["tuned"])),
        _with_interval(ratio(seconds["largest"], seconds["tuned"])),
        _with_interval(ratio(included, seconds["best"])),
        _with_interval(ratio(seconds["default again"], seconds["default"])),
    ]
    return f"| {name} | {sizes} | {' | '.join(cells)} |\n"


def _with_interval(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def _geometric(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


PARTS: dict[str, Callable[[], Any]] = {"curves": curves, "choice": choice, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all unless named")
    asked = parser.parse_args().parts or list(PARTS)
    path = RESULTS / "tune.json"
    results = json.loads(path.read_text())["results"] if path.exists() else {}
    ran = json.loads(path.read_text()).get("ran", {}) if path.exists() else {}
    for name in asked:
        results[name] = PARTS[name]()
        ran[name] = about()
        save("tune", {"ran": ran, "results": results}, table(results))
    print(table(results))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
