"""`--to mlflow`: a watched run, kept in the MLflow store that the environment names."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from rightbatch._errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from rightbatch._run.report import RunReport
    from rightbatch._training.watched import Watched

EXPERIMENT = "rightbatch run"
_AT_ONCE = 1000  # metrics that MLflow takes in one call
_LONGEST = 6000  # characters of a parameter


class MlflowRun:
    """A new run in MLflow's store: `MLFLOW_TRACKING_URI` and `MLFLOW_EXPERIMENT_NAME`, or MLflow's
    own default and `rightbatch run`.

    Raises:
        MissingExtraError: MLflow is not installed.
        UsageError: MLflow refuses the store.
    """

    def __init__(self) -> None:
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise MissingExtraError("mlflow", "study") from error
        self._error = MlflowException
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        try:
            self._client: Any = MlflowClient()
            found = self._client.get_experiment_by_name(name)
            self._experiment = (
                found.experiment_id if found else self._client.create_experiment(name)
            )
        except MlflowException as error:
            raise UsageError(f"MLflow cannot open its store for the run: {error}") from error
        self._started_at = time.time()

    def keep(self, command: str, watched: Watched, report: RunReport) -> str:
        """Write the run: parameters, the loss and the seconds of each step, and the report.

        Returns:
            The run's id.

        Raises:
            UsageError: MLflow refuses to write.
        """
        try:
            return self._write(command, watched, report)
        except self._error as error:
            raise UsageError(f"MLflow could not keep the run: {error}") from error

    def _write(self, command: str, watched: Watched, report: RunReport) -> str:
        from mlflow.entities import Param

        started = int(self._started_at * 1000)
        run = self._client.create_run(self._experiment, start_time=started)
        identity: str = run.info.run_id
        facts = {
            "command": command[:_LONGEST],
            "batch_size": report.batch_size,
            "micro_batches": report.micro_batches,
            "ranks": report.ranks,
            "device": report.device,
            "learning_rate": watched.learning_rate,
        }
        parameters = [Param(name, str(value)) for name, value in facts.items() if value is not None]
        self._client.log_batch(identity, params=parameters)
        metrics = _metrics(watched, report, started)
        while some := list(islice(metrics, _AT_ONCE)):
            self._client.log_batch(identity, metrics=some)
        self._client.log_dict(identity, report.to_dict(), "report.json")
        self._client.log_text(identity, str(report), "report.txt")
        failed = bool(report.exit_code)
        self._client.set_terminated(identity, "FAILED" if failed else "FINISHED")
        return identity


def _metrics(watched: Watched, report: RunReport, started: int) -> Iterator[Any]:
    from mlflow.entities import Metric

    ends = _ends(watched.step_seconds, started)
    for step, (seconds, end) in enumerate(zip(watched.step_seconds, ends, strict=True), 1):
        yield Metric("step_seconds", seconds, end, step)
    last = ends[-1] if ends else started
    for step, loss in watched.losses:
        yield Metric("loss", loss, ends[step] if step < len(ends) else last, step)
    noise = report.noise_scale
    facts = {
        "peak_bytes": report.peak_bytes,
        "loading_share": report.loading_share,
        "largest_batch_size_low": report.largest_batch_size.low,
        "largest_batch_size_high": report.largest_batch_size.high,
        "noise_scale": noise.value if noise else None,
    }
    for name, value in facts.items():
        if value is not None:
            yield Metric(name, float(value), last, report.steps)


def _ends(seconds: Sequence[float], started: int) -> list[int]:
    """Return when each step has ended, in milliseconds since the epoch."""
    now, ends = float(started), []
    for each in seconds:
        now += 1000 * each
        ends.append(int(now))
    return ends
