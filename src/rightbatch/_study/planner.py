"""Which runs are still to be trained, each with what its process is told."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from rightbatch._study.config import Asked
from rightbatch._study.records import SCHEMA, Run, RunKey
from rightbatch._study.runs.training import RunPlan
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.run_log import RunLog

LATER_PART = 0.5
"""Of a run: early on the noise scale is lower than near the target, where the time goes."""


class Planned:
    """Knows what is done already, and what the first run tells the others.

    `done` are the runs that have ended; one that was interrupted has not, and is begun anew.
    """

    def __init__(self, asked: Asked, store: Store, *, sharpness: bool = False) -> None:
        self._asked, self._store, self._sharpness = asked, store, sharpness
        store.abandon()
        self.done = {run.key: run.ended for run in store.runs().values() if run.key and run.ended}
        self._noise_scale = asked.noise_scale
        known = store.document("decisions.json") or {}
        if self._noise_scale is None:
            told = known.get("noise_scale")
            self._noise_scale = None if told is None else float(told)  # "inf" is text in JSON

    def first(self, keys: Iterable[RunKey]) -> list[RunKey]:
        """The run whose noise scale sets the learning rates of the others, where one is needed."""
        asked = self._asked
        if asked.rule == "none" or self._noise_scale is not None:
            return []
        at_base = [key for key in keys if key.batch_size == asked.base_batch]
        return at_base[:1] if len(asked.batches) > 1 else []

    def plans(self, keys: Iterable[RunKey]) -> Iterator[RunPlan]:
        """Those that are not done."""
        for key in keys:
            if key not in self.done:
                yield self.plan(key)

    def plan(self, key: RunKey) -> RunPlan:
        """What a run's process is told."""
        asked = self._asked
        return RunPlan(
            key,
            epochs=asked.epochs,
            base_batch=asked.base_batch,
            rule=asked.rule,
            noise_scale=self._noise_scale,
            micro_batch=asked.micro_batch,
            target=asked.target,
            seconds=asked.seconds,
            memory=asked.memory,
            margin=asked.margin,
            processes=asked.processes,
            sharpness=self._sharpness,
            settings=dict(asked.settings or {}),
        )

    def begin(self, plan: RunPlan) -> RunLog:
        """A run in the store."""
        asked = self._asked
        parameters: dict[str, Any] = {
            "workload": asked.workload,
            "epochs": plan.epochs,
            "rule": plan.rule,
            "base_batch": plan.base_batch,
            "target": None if plan.target is None else str(plan.target),
            "processes": plan.processes,
            **{f"settings.{name}": value for name, value in (plan.settings or {}).items()},
        }
        return self._store.begin(plan.key, parameters)

    def decide(self, runs: Collection[Run]) -> None:
        """Take the noise scale from the runs that were trained first, and write it down.

        It is the ratio of the means of tr(Σ) and |G|² over the later half of a run; infinite, which
        makes the rule linear, where the gradient is lost in noise.
        """
        parts = [pair for run in runs for pair in _later_looks(run)]
        told = f"in the later half of {', '.join(run.name for run in runs)}"
        squared = variance = 0.0
        if parts:
            squared, variance = (sum(column) / len(parts) for column in zip(*parts, strict=True))
        else:
            told = f"not measured {told}: the rule is linear"
        self._noise_scale = variance / squared if squared > 0 else math.inf
        decision = {
            "schema": SCHEMA,
            "noise_scale": self._noise_scale if squared > 0 else "inf",
            "looks": len(parts),
            "reason": told,
        }
        self._store.artifact("decisions.json", decision)


def _later_looks(run: Run) -> list[tuple[float, float]]:
    """|G|² and tr(Σ), as they were taken together."""
    squared, variance = (run.curves.get(f"gradient_{name}") for name in ("squared", "variance"))
    if squared is None or variance is None or not len(squared.steps):
        return []
    later = squared.steps >= LATER_PART * squared.steps[-1]
    return list(zip(squared.values[later].tolist(), variance.values[later].tolist(), strict=True))
