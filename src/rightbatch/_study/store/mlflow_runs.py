"""What MLflow's runs say about tries at the runs of a study."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import copysign, inf, nan
from typing import Any, NamedTuple, get_args

from rightbatch._study.records import Ended, RunKey, Status

PAGE = 1000
"""Runs that are asked for at once."""

LARGEST = sys.float_info.max
"""What MLflow keeps in place of infinity."""

ENDS: Mapping[Status, str] = {
    "finished": "FINISHED",
    "out_of_memory": "FAILED",
    "diverged": "FAILED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
"""MLflow's status of a run that ended so."""


@dataclass(frozen=True)
class StoredRun:
    """The newest try at a run, as a sweep that goes on finds it. `started` is Unix time."""

    id: str
    key: RunKey
    status: Status
    reason: str
    started: float
    ended: Ended | None


class Latest(NamedTuple):
    """The last value of a metric; `at` is milliseconds of Unix time."""

    value: float
    step: int
    at: int


def latest(run: Any) -> dict[str, Latest]:
    """The last value of each metric of a run of MLflow's."""
    return {
        one.key: Latest(_unbounded(one.value), one.step, one.timestamp)
        for one in run.data.to_proto().metrics
    }


def _unbounded(value: float) -> float:
    return copysign(inf, value) if abs(value) >= LARGEST else value


def stored(run: Any) -> StoredRun | None:
    """A try, if MLflow's run is one."""
    key = key_of(run.data.tags.get("rightbatch.key", ""))
    if key is None:
        return None
    reason = run.data.tags.get("rightbatch.reason", "")
    started = run.info.start_time / 1000
    return StoredRun(run.info.run_id, key, status_of(run), reason, started, ended_of(run))


def key_of(name: str) -> RunKey | None:
    """The key of this name."""
    told = re.fullmatch(r"batch_(\d+)-seed_(-?\d+)-rate_(.+)", name)
    try:
        return RunKey(int(told[1]), int(told[2]), float(told[3])) if told else None
    except ValueError:
        return None


def status_of(run: Any) -> Status:
    """What the tag says, once MLflow says that the run ended; of a run of others what MLflow
    says."""
    if run.info.status not in ("FINISHED", "FAILED", "KILLED"):
        return "running"
    told = run.data.tags.get("rightbatch.status")
    for status in get_args(Status):
        if told == status != "running":
            return status  # type: ignore[no-any-return]
    by_mlflow: dict[str, Status] = {"FINISHED": "finished", "KILLED": "stopped"}
    return by_mlflow.get(run.info.status, "failed")


def ended_of(run: Any) -> Ended | None:
    """How a run of ours ended, once it did."""
    if status_of(run) == "running":
        return None
    try:
        told = json.loads(run.data.tags["rightbatch.ended"])
        known = {field.name for field in fields(Ended)}
        ended = Ended(**{name: value for name, value in told.items() if name in known})
        metrics = {name: nan if one is None else one for name, one in ended.metrics.items()}
        return replace(ended, metrics=metrics)
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


def search(
    client: Any, experiments: list[str], wanted: str = "", *, most: int | None = None
) -> list[Any]:
    """The runs of MLflow's that are wanted, the newest first, page by page."""
    found: list[Any] = []
    token = None
    while experiments:
        page = client.search_runs(
            experiments,
            filter_string=wanted,
            max_results=PAGE if most is None else most,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token or most is not None:
            break
    return found
