"""Runs of a study, as `mlflow_writer` and `run_log` write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np

from rightbatch._study.records import Curve, Ended, Run
from rightbatch._study.store.history import History, Keep, interpolate
from rightbatch._study.store.run_log import AXES_LOGGED, Names
from rightbatch._study.store.run_record import RunRecord

T = TypeVar("T")

SUPERSEDED = "a newer run of the same batch size, seed and learning rate counts"


class NativeRun:
    """How a record of a study's run is read; `names` are the metrics that have a curve."""

    axes = AXES_LOGGED
    keep: Keep = "last"

    def __init__(self, record: RunRecord) -> None:
        self._record = record
        self.names = [name for name in record.latest if name not in AXES_LOGGED]

    def curve(self, name: str, histories: Mapping[str, History]) -> Curve:
        """A metric along a run: examples, seconds and epochs were logged at the same steps."""
        history = histories[name]
        steps = history.steps
        for axis in AXES_LOGGED:  # one array for all metrics that were logged together
            if axis in histories and np.array_equal(histories[axis].steps, steps):
                steps = histories[axis].steps
                break
        examples, seconds, epochs = (interpolate(histories, axis, steps) for axis in AXES_LOGGED)
        return Curve(steps, examples, seconds, epochs, history.values)

    def run(self, curves: Mapping[str, Curve]) -> Run:
        """The run, while it trains and after."""
        record = self._record
        parameters, key = record.parameters, record.key
        ended = record.ended or Ended("running", "")
        values = {name: one.value for name, one in record.latest.items()}
        logged_as = Names(AXES_LOGGED)
        metrics = {logged_as[name]: value for name, value in ended.metrics.items()} | values
        return Run(
            id=record.id,
            name=record.name or str(key),
            batch_size=key.batch_size if key else None,
            seed=key.seed if key else None,
            status=record.status,
            reason=record.reason,
            started=record.started / 1000,
            learning_rate=_either(ended.learning_rate, values.get("learning_rate")),
            learning_rate_factor=key.learning_rate_factor if key else 1.0,
            micro_batch_size=_either(ended.micro_batch_size, _int(parameters, "micro_batch_size")),
            steps=ended.steps or max((one.step for one in record.latest.values()), default=0),
            examples=ended.examples or values.get("examples", 0.0),
            seconds=ended.seconds or values.get("seconds", 0.0),
            epochs=ended.epochs or values.get("epochs", 0.0),
            peak_bytes=_either(ended.peak_bytes, _bytes(values.get("peak_bytes"))),
            limit_bytes=_either(ended.limit_bytes, _int(parameters, "limit_bytes")),
            device=ended.device or parameters.get("device", ""),
            parameters=dict(parameters),
            metrics={name: value for name, value in metrics.items() if name not in AXES_LOGGED},
            curves=curves,
        )


def stop_superseded(runs: Iterable[tuple[RunRecord, Run]]) -> list[Run]:
    """All runs in their order; attempts at a run of a study are stopped, except for the last."""
    listed: list[Run] = []
    last: dict[tuple[str, str], int] = {}
    for record, run in runs:
        if record.kind == "run" and record.key is not None:
            attempted = (record.parent, record.key.name)
            if attempted in last:
                older = listed[last[attempted]]
                if older.status != "stopped":
                    listed[last[attempted]] = replace(older, status="stopped", reason=SUPERSEDED)
            last[attempted] = len(listed)
        listed.append(run)
    return listed


def _either(first: T | None, second: T | None) -> T | None:
    return second if first is None else first


def _int(parameters: Mapping[str, str], name: str) -> int | None:
    try:
        return int(parameters[name])
    except (KeyError, ValueError):
        return None


def _bytes(value: float | None) -> int | None:
    return int(value) if value is not None and np.isfinite(value) else None
