"""Runs that are made up, with curves whose laws are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rightbatch._study.config import StudyConfig
from rightbatch._study.options import StudyOptions
from rightbatch._study.records import Curve, Run, RunKey, Status, Target
from rightbatch._study.runs.plan import RunPlan

Law = Callable[[NDArray[np.float64]], NDArray[np.float64]]
EPOCH = 1000.0
TARGET = Target("evaluation_loss", 0.5)


def curve(
    batch_size: int,
    steps: NDArray[np.float64],
    values: NDArray[np.float64],
    examples_per_second: float = 1000.0,
) -> Curve:
    examples = steps * batch_size
    return Curve(steps, examples, examples / examples_per_second, examples / EPOCH, values)


def made(
    batch_size: int | None,
    seed: int | None = 0,
    curves: Mapping[str, Curve] | None = None,
    status: Status = "finished",
    factor: float = 1.0,
    **fields: Any,
) -> Run:
    name = f"{batch_size}-{seed}-{factor}"
    longest = max((c for c in (curves or {}).values()), key=lambda c: c.steps[-1], default=None)
    ends = (
        {}
        if longest is None
        else {
            "steps": float(longest.steps[-1]),
            "examples": float(longest.examples[-1]),
            "seconds": float(longest.seconds[-1]),
        }
    )
    return Run(
        **{
            "id": f"{name}-{fields.get('started', 0.0)}",
            "name": name,
            "batch_size": batch_size,
            "seed": seed,
            "status": status,
            "learning_rate_factor": factor,
            "curves": curves or {},
            **ends,
            **fields,
        }
    )


def reaching(
    batch_size: int, steps: float, seed: int = 0, metric: str = "evaluation_loss", **fields: Any
) -> Run:
    """Meets TARGET after so many steps: the loss is 0.5 (steps/s)^0.3, at 40 places to 4 of it."""
    at = steps * np.geomspace(1 / 16, 4, 41)
    speed = fields.pop("examples_per_second", 1000.0)
    values = 0.5 * (steps / at) ** 0.3
    return made(
        batch_size,
        seed,
        {metric: curve(batch_size, at, values, speed)},
        **fields,
    )


def law_of(steps_min: float, examples_min: float) -> Callable[[int], float]:
    return lambda batch_size: steps_min + examples_min / batch_size


def noisy(
    batch_size: int,
    law: Law,
    spread: float,
    seed: int,
    *,
    examples: int,
    every: int = 1,
) -> Run:
    """Logs a mean training loss every so many steps; an example's loss scatters by `spread`."""
    random = np.random.default_rng([batch_size, seed])
    steps = np.arange(1.0, examples // batch_size + 1)
    middle = steps * batch_size - batch_size / 2
    losses = law(middle) + spread / np.sqrt(batch_size) * random.standard_normal(len(steps))
    count = len(steps) // every
    means = losses[: count * every].reshape(count, every).mean(axis=1)
    at = steps[every - 1 : count * every : every]
    return made(batch_size, seed, {"loss": curve(batch_size, at, means)}, id=f"{seed} {every}")


def plan_of(
    key: RunKey,
    *,
    base_batch: int = 16,
    target: Target | None = None,
    noise_scale: float | None = None,
    **options: Any,
) -> RunPlan:
    """What a run of a study with these options is told."""
    asked = StudyOptions(batches=(key.batch_size,), out="unused", **{"epochs": 1} | options)
    return RunPlan(key, StudyConfig("made-up", asked, base_batch, target), noise_scale)
