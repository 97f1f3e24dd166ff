"""Steps to target over batch size, with the curve that theory has for them."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks._record import say
from benchmarks.tune.runs import best_by_size, geometric, measure
from benchmarks.tune.tasks import TASKS


def curves() -> dict[str, Any]:
    """Makes the runs that are missing, and fits S = S_min + E_min/B to each size's best rate."""
    results = {}
    for task in TASKS.values():
        for run in measure(task):
            say(str(run))
        points = best_by_size(task)
        steps = {size: geometric([run.steps for run in runs]) for size, runs in points.items()}
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
