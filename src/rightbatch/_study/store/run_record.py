"""A run as MLflow has it, whichever way it was read, and what its tags tell of a study's run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import copysign, inf, nan
from typing import Any, NamedTuple, get_args

from rightbatch._study.records import Ended, RunKey, Status

LARGEST = sys.float_info.max
"""MLflow stores it in place of infinity."""

MLFLOW_STATUS: Mapping[Status, str] = {
    "finished": "FINISHED",
    "out_of_memory": "FAILED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""MLflow's status of a run that ended so."""

_BY_MLFLOW: Mapping[str, Status] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


class Latest(NamedTuple):
    """The last value of a metric; `at` is milliseconds of Unix time."""

    value: float
    step: int
    at: int


@dataclass(frozen=True)
class RunRecord:
    """A run of MLflow's. `started` is milliseconds of Unix time."""

    id: str
    name: str
    experiment: str
    mlflow_status: str
    started: int
    tags: Mapping[str, str]
    parameters: Mapping[str, str]
    latest: Mapping[str, Latest]

    @classmethod
    def of(cls, run: Any) -> RunRecord:
        """From the run that MLflow's client returns."""
        latest = {
            one.key: Latest(stored_value(one.value), one.step, one.timestamp)
            for one in run.data.to_proto().metrics
        }
        return cls(
            run.info.run_id,
            run.info.run_name or "",
            str(run.info.experiment_id),
            run.info.status,
            run.info.start_time or 0,
            run.data.tags,
            run.data.params,
            latest,
        )

    @property
    def kind(self) -> str:
        """`study` or `run` if a study wrote it, empty otherwise."""
        return self.tags.get("rightbatch.kind", "")

    @property
    def parent(self) -> str:
        """The id of the study's own run."""
        return self.tags.get("mlflow.parentRunId", "")

    @property
    def key(self) -> RunKey | None:
        """Which run of the study this is an attempt at."""
        return parse_key(self.tags.get("rightbatch.key", ""))

    @property
    def reason(self) -> str:
        """Why it ended."""
        return self.tags.get("rightbatch.reason", "")

    @property
    def status(self) -> Status:
        """Running until MLflow has its end; then what the study's tag says, or else MLflow."""
        if self.mlflow_status not in _BY_MLFLOW:
            return "running"
        for status in get_args(Status):
            if self.tags.get("rightbatch.status") == status != "running":
                return status  # type: ignore[no-any-return]
        return _BY_MLFLOW[self.mlflow_status]

    @cached_property
    def ended(self) -> Ended | None:
        """How a study's run ended; None while it runs and where the tag cannot be parsed."""
        if self.status == "running":
            return None
        try:
            document = json.loads(self.tags["rightbatch.ended"])
            known = {field.name for field in fields(Ended)}
            ended = Ended(**{name: value for name, value in document.items() if name in known})
            metrics = {name: nan if one is None else one for name, one in ended.metrics.items()}
            return replace(ended, metrics=metrics)
        except (KeyError, ValueError, TypeError, AttributeError):
            return None


def stored_value(value: float) -> float:
    """A metric's value as it was logged.

    Every NaN is the same object, so that records with equal values are equal.
    """
    if value != value:
        return nan
    return copysign(inf, value) if abs(value) >= LARGEST else value


def parse_key(name: str) -> RunKey | None:
    """The key with this `RunKey.name`; None if it is not one."""
    match = re.fullmatch(r"batch_(\d+)-seed_(-?\d+)-rate_(.+)", name)
    try:
        return RunKey(int(match[1]), int(match[2]), float(match[3])) if match else None
    except ValueError:
        return None
