"""Which runs of a study are still to be trained, and the noise scale that their rates depend on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from rightbatch._study.config import StudyConfig
from rightbatch._study.records import SCHEMA, Run, RunKey
from rightbatch._study.runs.plan import RunPlan
from rightbatch._study.store.mlflow_writer import Store
from rightbatch._study.store.run_log import RunLog

LATER_PART = 0.5
"""Part of a run that is used: early on the noise scale is lower than near the target."""


class Planner:
    """Plans the runs that have not ended yet.

    `done` are the runs that have ended. An interrupted run is trained again.
    """

    def __init__(self, config: StudyConfig, store: Store) -> None:
        self._config, self._store = config, store
        store.abandon()
        self.done = {run.key: run.ended for run in store.runs().values() if run.key and run.ended}
        self._noise_scale = config.options.noise_scale
        known = store.document("decisions.json") or {}
        if self._noise_scale is None:
            measured = known.get("noise_scale")  # infinity is the text "inf" in JSON
            self._noise_scale = None if measured is None else float(measured)

    def first(self, keys: Iterable[RunKey]) -> list[RunKey]:
        """Return the run that measures the noise scale for the other runs' rates, if needed.

        Of a command it also shows the optimizer.
        """
        config = self._config
        has_rule = config.sets_learning_rates and config.options.rule != "none"
        is_known = self._noise_scale is not None and config.command is None
        if not has_rule or is_known:
            return []
        at_base = [key for key in keys if key.batch_size == config.base_batch]
        return at_base[:1] if len(config.batches) > 1 else []

    def plans(self, keys: Iterable[RunKey]) -> Iterator[RunPlan]:
        """Yield the plans of the runs that are not done."""
        for key in keys:
            if key not in self.done:
                yield self.plan(key)

    def plan(self, key: RunKey) -> RunPlan:
        """Return the plan of a run."""
        return RunPlan(key, self._config, self._noise_scale)

    def begin(self, plan: RunPlan) -> RunLog:
        """Create the run in the store."""
        config, options = plan.config, plan.options
        parameters: dict[str, Any] = {
            "workload": config.workload,
            "command": config.command,
            "epochs": options.most_epochs if config.command is None else None,
            "steps": options.steps,
            "rule": options.rule if config.sets_learning_rates else None,
            "base_batch": config.base_batch,
            "target": None if config.target is None else str(config.target),
            "processes": options.processes,
            **{f"settings.{name}": value for name, value in (options.settings or {}).items()},
        }
        return self._store.begin(plan.key, parameters)

    def decide(self, runs: Collection[Run]) -> None:
        """Estimate the noise scale from the runs that were trained first, and store it.

        It is the ratio of the means of tr(Σ) and |G|² over the later half of a run; infinite if
        the estimate of |G|² is not positive, which makes the rule linear. One that is known stays.
        """
        if self._noise_scale is not None:
            return
        parts = [pair for run in runs for pair in _later_windows(run)]
        reason = f"in the later half of {', '.join(run.name for run in runs)}"
        squared = variance = 0.0
        if parts:
            squared, variance = (sum(column) / len(parts) for column in zip(*parts, strict=True))
        else:
            reason = f"not measured {reason}: the rule is linear"
        self._noise_scale = variance / squared if squared > 0 else math.inf
        decision = {
            "schema": SCHEMA,
            "noise_scale": self._noise_scale if squared > 0 else "inf",
            "looks": len(parts),
            "reason": reason,
        }
        self._store.artifact("decisions.json", decision)


def _later_windows(run: Run) -> list[tuple[float, float]]:
    """Return pairs of |G|² and tr(Σ) of the noise windows in the later part of a run."""
    squared, variance = (run.curves.get(f"gradient_{name}") for name in ("squared", "variance"))
    if squared is None or variance is None or not len(squared.steps):
        return []
    later = squared.steps >= LATER_PART * squared.steps[-1]
    return list(zip(squared.values[later].tolist(), variance.values[later].tolist(), strict=True))
