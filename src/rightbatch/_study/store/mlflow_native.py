"""Runs of a study, as `store` and `runlog` wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from rightbatch._study.records import Curve, Ended, Run
from rightbatch._study.store.metric_history import History, joined
from rightbatch._study.store.mlflow_runs import Latest, ended_of, key_of, status_of
from rightbatch._study.store.run_log import AXES_LOGGED, Names

T = TypeVar("T")

BEGUN_ANEW = "a newer run of the same batch size, seed and learning rate counts"


def is_ours(run: Any) -> bool:
    """Whether a run of MLflow's is a try at one of ours."""
    return bool(run.data.tags.get("rightbatch.kind") == "run")


def same(run: Any) -> tuple[str, str] | None:
    """What two tries at one run have in common."""
    tags = run.data.tags
    if not is_ours(run) or "rightbatch.key" not in tags:
        return None
    return tags.get("mlflow.parentRunId", ""), tags["rightbatch.key"]


def names(latest: Mapping[str, Latest]) -> list[str]:
    """The metrics that have a curve."""
    return [name for name in latest if name not in AXES_LOGGED]


def curve(name: str, histories: Mapping[str, History]) -> Curve:
    """A metric along a run: examples, seconds and epochs were logged at the same steps."""
    history = histories[name]
    steps = history.steps
    for axis in AXES_LOGGED:  # one array for all metrics that were logged together
        if axis in histories and np.array_equal(histories[axis].steps, steps):
            steps = histories[axis].steps
            break
    examples, seconds, epochs = (joined(histories, axis, history.steps) for axis in AXES_LOGGED)
    return Curve(steps, examples, seconds, epochs, history.values)


def run(run: Any, latest: Mapping[str, Latest], curves: Mapping[str, Curve]) -> Run:
    """What MLflow's run tells of one of ours, while it trains and after."""
    tags, parameters = run.data.tags, run.data.params
    key = key_of(tags.get("rightbatch.key", ""))
    ended = ended_of(run) or Ended("running", "")
    values = {name: one.value for name, one in latest.items()}
    told = Names(AXES_LOGGED)
    metrics = {told[name]: value for name, value in ended.metrics.items()} | values
    return Run(
        id=run.info.run_id,
        name=run.info.run_name or str(key),
        batch_size=key.batch_size if key else None,
        seed=key.seed if key else None,
        status=status_of(run),
        reason=tags.get("rightbatch.reason", ""),
        started=run.info.start_time / 1000,
        learning_rate=_either(ended.learning_rate, values.get("learning_rate")),
        learning_rate_factor=key.learning_rate_factor if key else 1.0,
        micro_batch_size=_either(ended.micro_batch_size, _whole(parameters, "micro_batch_size")),
        steps=ended.steps or max((one.step for one in latest.values()), default=0),
        examples=ended.examples or values.get("examples", 0.0),
        seconds=ended.seconds or values.get("seconds", 0.0),
        epochs=ended.epochs or values.get("epochs", 0.0),
        peak_bytes=_either(ended.peak_bytes, _bytes(values.get("peak_bytes"))),
        limit_bytes=_either(ended.limit_bytes, _whole(parameters, "limit_bytes")),
        device=ended.device or parameters.get("device", ""),
        parameters=dict(parameters),
        metrics={name: value for name, value in metrics.items() if name not in AXES_LOGGED},
        curves=curves,
    )


def newest_count(runs: Iterable[tuple[tuple[str, str] | None, Run]]) -> list[Run]:
    """Of tries at one run, which come in their order, all but the last are stopped."""
    listed: list[Run] = []
    last: dict[tuple[str, str], int] = {}
    for same, run in runs:
        if same is not None:
            if same in last:
                older = listed[last[same]]
                if older.status != "stopped":
                    listed[last[same]] = replace(older, status="stopped", reason=BEGUN_ANEW)
            last[same] = len(listed)
        listed.append(run)
    return listed


def _either(first: T | None, second: T | None) -> T | None:
    return second if first is None else first


def _whole(parameters: Mapping[str, str], name: str) -> int | None:
    try:
        return int(parameters[name])
    except (KeyError, ValueError):
        return None


def _bytes(value: float | None) -> int | None:
    return int(value) if value is not None and np.isfinite(value) else None
