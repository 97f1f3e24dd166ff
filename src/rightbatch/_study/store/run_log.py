"""Logs one run to the store."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rightbatch._study.json_text import to_json
from rightbatch._study.records import SCHEMA, Ended, Point, RunKey, Status
from rightbatch._study.store.artifacts import Artifacts
from rightbatch._study.store.database import quiet, retry
from rightbatch._study.store.run_record import MLFLOW_STATUS

METRICS_PER_CALL = 1000
"""MLflow's limit."""

LONGEST_TAG = 4000
"""Characters; MLflow's limit was 5000 and is 8000."""

LONGEST_PARAMETER = 500

AXES_LOGGED = ("examples", "seconds", "epochs")
"""Metrics that are logged with every point; its `steps` are MLflow's own step."""


class RunLog:
    """Logs one run. Different runs may be logged from different threads."""

    def __init__(self, client: Any, artifacts: Artifacts, run: str, key: RunKey) -> None:
        self.id = run
        self.key = key
        self._client = client
        self._artifacts = artifacts
        self._named = Names(AXES_LOGGED)
        self._steps: int | None = None

    def points(self, points: Sequence[Point]) -> None:
        """Log measurements; many in one call are cheaper."""
        from mlflow.entities import Metric

        metrics: list[Any] = []
        for point in points:
            at = max(0, round(point.at * 1000))
            values = {self._named[name]: value for name, value in point.values.items()}
            if point.steps != self._steps:  # MLflow pairs the values of two metrics by their order
                values |= {axis: getattr(point, axis) for axis in AXES_LOGGED}
            self._steps = point.steps
            metrics += [
                Metric(name, float(value), at, int(point.steps)) for name, value in values.items()
            ]
        for first in range(0, len(metrics), METRICS_PER_CALL):
            self._batch(metrics=metrics[first : first + METRICS_PER_CALL])

    def parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log parameters of the run, each once; None is for one that is not known yet."""
        from mlflow.entities import Param

        known = {name: str(value) for name, value in parameters.items() if value is not None}
        self._batch(
            params=[Param(name, value[:LONGEST_PARAMETER]) for name, value in known.items()]
        )

    def ended(self, ended: Ended, events: Sequence[Mapping[str, Any]] = ()) -> None:
        """Log how the run ended; only then does it count as ended."""
        fields = asdict(ended)
        document = {"schema": SCHEMA, "key": asdict(self.key), "ended": fields, "events": [*events]}
        self._artifacts.put(self.id, "run.json", document)
        end(self._client, self.id, ended.status, ended.reason, {"rightbatch.ended": _short(fields)})

    def _batch(self, **content: Any) -> None:
        retry(lambda: self._client.log_batch(self.id, **content))


def end(
    client: Any, run: str, status: Status, reason: str, tags: Mapping[str, str] | None = None
) -> None:
    """End a run, MLflow's own status last: after a kill in between it still counts as running."""
    tags = {**(tags or {}), "rightbatch.status": status, "rightbatch.reason": reason}
    retry(lambda: client.log_batch(run, tags=as_tags(tags)))
    with quiet():
        retry(lambda: client.set_terminated(run, MLFLOW_STATUS[status]))


def as_tags(tags: Mapping[str, str]) -> list[Any]:
    """MLflow's tags, cut to its limit."""
    from mlflow.entities import RunTag

    return [RunTag(name, value[:LONGEST_TAG]) for name, value in tags.items()]


class Names:
    """Names of metrics that MLflow accepts. Different names stay different.

    >>> names = Names(["seconds"])
    >>> [names[name] for name in ("mAP@50 (B)", "mAP 50 (B)", "mAP@50 {B}", "seconds", "/x")]
    ['mAP_50 _B_', 'mAP 50 _B_', 'mAP_50 _B__2', 'seconds_2', 'x']
    """

    def __init__(self, taken: Sequence[str]) -> None:
        self._taken = set(taken)
        self._known: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            clean = posixpath.normpath(re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII))
            clean = chosen = clean.strip("/. ")[:240] or "_"
            number = 2
            while chosen in self._taken:
                chosen = f"{clean}_{number}"
                number += 1
            self._taken.add(chosen)
            self._known[name] = chosen
        return self._known[name]


def _short(ended: dict[str, Any]) -> str:
    """JSON that fits a tag; `run.json` has long messages and very many metrics in full."""
    error = ended["error"] and {name: text[:300] for name, text in ended["error"].items()}
    short = {**ended, "reason": ended["reason"][:300], "error": error}
    for name, nothing in (("error", None), ("metrics", {})):
        if len(to_json(short)) > LONGEST_TAG:
            short[name] = nothing
    return to_json(short)
