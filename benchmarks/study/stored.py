"""What a study's store holds, asked of MLflow itself."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATABASE = "mlflow.db"
_PATIENCE = 120.0  # seconds
Values = tuple[int, int, float]
"""A step, its time in milliseconds of Unix time, and the value."""


@dataclass(frozen=True)
class Kept:
    """A try at a run, with MLflow's own status; `histories` are all its values by metric."""

    id: str
    key: str
    batch_size: int
    status: str
    histories: Mapping[str, tuple[Values, ...]]

    def history(self, metric: str) -> tuple[Values, ...]:
        return self.histories.get(metric, ())

    @property
    def is_finished(self) -> bool:
        return self.status == "FINISHED"


def runs_of(folder: Path) -> list[Kept]:
    """All tries, the oldest first; none where there is no database yet."""
    if not (folder / DATABASE).exists():
        return []
    client = _client(folder)
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(
        experiments, "tags.`rightbatch.kind` = 'run'", order_by=["attributes.start_time ASC"]
    )
    return [_kept(client, run) for run in found]


def wait_for_a_run(folder: Path, study: subprocess.Popen[str]) -> None:
    """Until the study has begun one."""
    until = time.monotonic() + _PATIENCE
    while not runs_of(folder):
        if study.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the study did not begin a run")
        time.sleep(0.2)


def _client(folder: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / DATABASE}")


def _kept(client: Any, run: Any) -> Kept:
    histories = {
        metric: tuple(
            sorted(
                (one.step, one.timestamp, one.value)
                for one in client.get_metric_history(run.info.run_id, metric)
            )
        )
        for metric in run.data.metrics
    }
    return Kept(
        run.info.run_id,
        run.data.tags["rightbatch.key"],
        int(run.data.params.get("batch_size", 0)),
        run.info.status,
        histories,
    )
