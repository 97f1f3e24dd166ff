"""Writes a study to MLflow: a run for the study, and below it one for every attempt at a `RunKey`.

A process that is killed at any moment leaves a readable store: an attempt counts as ended only
after MLflow's own status says so, which is written last.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rightbatch._errors import RightbatchError, UsageError
from rightbatch._study.json_text import to_json
from rightbatch._study.records import SCHEMA, RunKey, Target
from rightbatch._study.store.artifacts import Artifacts, write_file
from rightbatch._study.store.database import (
    DATABASE,
    POINTER,
    environment_uri,
    open_client,
    path_of,
    read_pointer,
    retry,
    uri_of,
    without_password,
)
from rightbatch._study.store.mlflow_source import MlflowSource
from rightbatch._study.store.run_log import RunLog, as_tags, end
from rightbatch._study.store.run_record import RunRecord

if TYPE_CHECKING:
    from rightbatch._study.store.reader import Reader


class Store:
    """The store of a study's runs. Safe to use from several threads.

    The tracking URI and the active run of the user's own code are not changed.
    """

    def __init__(self, client: Any, uri: str, folder: Path, title: str) -> None:
        self.uri = uri
        self.folder = folder
        self.title = title
        self._client = client
        self._source = MlflowSource(client)
        self._own = path_of(uri) == folder / DATABASE
        self._artifacts = Artifacts(client, folder / "artifacts" if self._own else None)
        self._newest = 0
        self._experiment: str | None = None
        self._study: str | None = None
        self._look()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], title: str) -> Self:
        """Open the store of a folder: its own database, or that of `MLFLOW_TRACKING_URI`.

        Args:
            folder: of the study; created if it is missing.
            title: the name of a new study's experiment.

        Raises:
            MissingExtraError: without MLflow.
            UsageError: if MLflow refuses the store, or the folder cannot be written.
        """
        folder = Path(folder).resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            uri = environment_uri() or uri_of(folder / DATABASE)
            return cls(open_client(uri), uri, folder, title)
        except OSError as error:
            if isinstance(error, RightbatchError):
                raise
            raise UsageError(
                f"cannot write into the folder {folder}: {error.strerror or error}; choose another "
                "--out"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to close: everything logged is already in the store."""

    def __str__(self) -> str:
        return without_password(self.uri)

    def asked(self) -> dict[str, Any] | None:
        """The configuration of the folder's study; None if it is new."""
        found = None if self._study is None else self.document("study.json")
        asked = found.get("asked") if found else None
        return asked if isinstance(asked, dict) else None

    def study(self, asked: Mapping[str, Any], target: Target | None = None) -> str:
        """Begin the study's own run, or find it, and write its configuration to `study.json`.

        Returns:
            The run's id.
        """
        self._look()  # another process may have begun it in the meantime
        if self._study is None:
            run = self._begin(self.title, {"rightbatch.kind": "study"})
            self._study = run.info.run_id
            if not self._own:
                content = {
                    "schema": SCHEMA,
                    "uri": without_password(self.uri),
                    "study": self._study,
                }
                write_file(self.folder / POINTER, to_json(content))
        else:
            retry(lambda: self._client.update_run(self._id, status="RUNNING"))
        if self.asked() != json.loads(to_json(asked)):
            tags = {
                "rightbatch.title": self.title,
                "rightbatch.target": "" if target is None else to_json(vars(target)),
            }
            retry(lambda: self._client.log_batch(self._id, tags=as_tags(tags)))
            self.artifact("study.json", {"title": self.title, "asked": dict(asked)})
        return self._id

    def finish(self) -> None:
        """End the study's own run; a later call may continue it."""
        retry(lambda: self._client.set_terminated(self._id, "FINISHED"))

    def artifact(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON document of the study; NaN and infinity become null."""
        self._artifacts.put(self._id, name, {"schema": SCHEMA, **document})

    def document(self, name: str, run: str | None = None) -> dict[str, Any] | None:
        """Read a document of the study or of one of its runs; None if there is none."""
        return self._artifacts.get(run or self._id, name)

    def runs(self) -> dict[str, RunRecord]:
        """The newest attempt at each run, by `RunKey.name`."""
        newest: dict[str, RunRecord] = {}
        for record in self._children():
            self._newest = max(self._newest, record.started)
            if record.key is not None:
                newest[record.key.name] = record
        return newest

    def abandon(self, reason: str = "the sweep that ran it has ended") -> list[RunRecord]:
        """Mark runs that still count as running as stopped: for a sweep that is the only one.

        Returns:
            The attempts that were marked, as they were.
        """
        running = [one for one in self._children() if one.mlflow_status == "RUNNING"]
        for record in running:
            end(self._client, record.id, "stopped", reason)
        return [record for record in running if record.key is not None]

    def begin(self, key: RunKey, parameters: Mapping[str, Any]) -> RunLog:
        """Begin an attempt at a run; `parameters` that are None may follow later."""
        tags = {
            "rightbatch.kind": "run",
            "rightbatch.key": key.name,
            "rightbatch.status": "running",
            "rightbatch.reason": "",
            "mlflow.parentRunId": self._id,
        }
        run = self._begin(str(key), tags)
        log = RunLog(self._client, self._artifacts, run.info.run_id, key)
        log.parameters({**parameters, **vars(key)})
        return log

    def reader(self) -> Reader:
        """A reader of this study's runs."""
        from rightbatch._study.store.reader import Reader

        return Reader(self.uri, study=self._id)

    @property
    def _id(self) -> str:
        if self._study is None:
            raise RuntimeError("call study() first")
        return self._study

    def _look(self) -> None:
        if self._study is None and (parent := self._parent()) is not None:
            self._study = parent.id
            self._experiment = parent.experiment

    def _parent(self) -> RunRecord | None:
        """The study's run. In a store that others use too, only the one that the folder names."""
        if self._own:
            experiments = [*self._source.experiments()]
            studies = self._source.search(experiments, {"rightbatch.kind": "study"})
            return studies[-1] if studies else None
        pointed = read_pointer(self.folder)
        return None if pointed is None else self._source.get(pointed["study"])

    def _children(self) -> list[RunRecord]:
        experiments = [self._experiment] if self._experiment else []
        return self._source.search(experiments, {"mlflow.parentRunId": self._id})

    def _home(self) -> str:
        """The experiment of the study, created if it is missing."""
        from mlflow.exceptions import MlflowException

        if self._experiment is None:
            local = path_of(self.uri) is not None
            place = (self.folder / "artifacts").as_uri() if local else None
            try:
                self._experiment = self._client.create_experiment(self.title, place)
            except MlflowException as error:
                known = self._client.get_experiment_by_name(self.title)
                if known is None:
                    raise RightbatchError(f"the run store refused: {error}") from error
                if known.lifecycle_stage != "active":
                    self._client.restore_experiment(known.experiment_id)
                self._experiment = known.experiment_id
        return str(self._experiment)

    def _begin(self, name: str, tags: Mapping[str, str]) -> Any:
        """Begin a run that is newer than all others, even if the clock was set back."""
        self._newest = started = max(self._newest + 1, time.time_ns() // 10**6)
        home = self._home()
        return retry(lambda: self._client.create_run(home, started, dict(tags), name))
