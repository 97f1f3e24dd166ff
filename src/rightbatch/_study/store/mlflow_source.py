"""Runs through MLflow's client: of tracking servers, and of whatever else MLflow opens."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from rightbatch._errors import RightbatchError
from rightbatch._study.store.artifacts import Artifacts
from rightbatch._study.store.history import History, Keep
from rightbatch._study.store.run_record import RunRecord

PAGE = 1000
"""Runs in one answer."""

REQUESTS = 8
"""At once, to a tracking server."""


class RunSource(Protocol):
    """Where a `Reader` finds runs: a database file, or MLflow's client."""

    artifacts: Artifacts

    def state(self) -> str | None:
        """Another text after every write; None if only reading the runs tells."""

    def experiments(self) -> dict[str, str]:
        """Names by id."""

    def get(self, id: str) -> RunRecord | None:
        """A run by its id; None if there is none."""

    def search(
        self, experiments: Sequence[str], tags: dict[str, str] | None = None
    ) -> list[RunRecord]:
        """The runs of these experiments that have these tags, the oldest first."""

    def histories(
        self, run: RunRecord, names: Sequence[str], keep: Keep = "last"
    ) -> dict[str, History]:
        """At least these metrics of a run, as far as it has them."""

    def close(self) -> None: ...


class MlflowSource:
    """The runs of a store that MLflow has opened.

    Raises:
        RightbatchError: from every method, if the store does not answer.
    """

    def __init__(self, client: Any) -> None:
        self.artifacts = Artifacts(client, None)
        self._client = client

    def state(self) -> None:
        """Only reading the runs tells whether anything has changed."""

    def experiments(self) -> dict[str, str]:
        """Names by id."""
        return {str(one.experiment_id): one.name for one in self._call("search_experiments")}

    def get(self, id: str) -> RunRecord | None:
        """A run by its id; None if there is none, or it was deleted."""
        run = self._call("get_run", id)
        return RunRecord.of(run) if run and run.info.lifecycle_stage == "active" else None

    def search(
        self, experiments: Sequence[str], tags: dict[str, str] | None = None
    ) -> list[RunRecord]:
        """The runs of these experiments that have these tags, the oldest first."""
        found: list[RunRecord] = []
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in (tags or {}).items())
        token = None
        while experiments:
            page = self._call(
                "search_runs",
                list(experiments),
                filter_string=wanted,
                max_results=PAGE,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            found += map(RunRecord.of, page)
            token = page.token
            if not token:
                break
        return found

    def histories(
        self, run: RunRecord, names: Sequence[str], keep: Keep = "last"
    ) -> dict[str, History]:
        """These metrics of a run, several requests at a time."""
        with ThreadPoolExecutor(REQUESTS) as pool:
            answers = pool.map(lambda name: self._call("get_metric_history", run.id, name), names)
            return {
                name: _history(one or [], keep) for name, one in zip(names, answers, strict=True)
            }

    def close(self) -> None:
        """There is nothing to close."""

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call the client; None for a run that does not exist."""
        from mlflow.exceptions import MlflowException

        try:
            return getattr(self._client, method)(*arguments, **named)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise RightbatchError(f"the store of runs does not answer: {error}") from error


def _history(metrics: list[Any], keep: Keep) -> History:
    rows = np.array([(one.step, one.timestamp, one.value) for one in metrics], np.float64)
    return History.of(rows.reshape(-1, 3).T, keep)
