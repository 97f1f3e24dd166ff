"""The runs of a study, written to MLflow as they go.

One run of MLflow's for the study, and below it one for every try at a `RunKey`. A process that is
killed at any moment leaves a store that reads: a try counts as ended only once MLflow's own status
says so, and that is written last.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rightbatch._errors import RightbatchError
from rightbatch._study.records import SCHEMA, RunKey, Target
from rightbatch._study.store.artifacts import Artifacts, as_json, write_whole
from rightbatch._study.store.database import (
    DATABASE,
    POINTER,
    chosen_uri,
    open_client,
    path_of,
    pointer,
    shown,
    tried,
    uri_of,
)
from rightbatch._study.store.mlflow_runs import StoredRun, search, stored
from rightbatch._study.store.run_log import RunLog, as_tags, end

if TYPE_CHECKING:
    from rightbatch._study.store.reader import Reader


class Store:
    """Where a study keeps its runs. Safe to use from several threads.

    The tracking address and the active run that the user's own code sees are left alone.
    """

    def __init__(self, client: Any, uri: str, folder: Path, title: str) -> None:
        self.uri = uri
        self.folder = folder
        self.title = title
        self._client = client
        self._own = path_of(uri) == folder / DATABASE
        self._artifacts = Artifacts(client, folder / "artifacts" if self._own else None)
        self._newest = 0
        self._experiment: str | None = None
        self._study: str | None = None
        self._look()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], title: str) -> Self:
        """The store of a folder: its own database, or what `MLFLOW_TRACKING_URI` says.

        Args:
            folder: of the study; made where it is missing.
            title: names the experiment of a study that is new.

        Raises:
            MissingExtraError: without MLflow.
            UsageError: if MLflow refuses the store.
        """
        folder = Path(folder).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        uri = chosen_uri() or uri_of(folder / DATABASE)
        return cls(open_client(uri), uri, folder, title)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to close: what was logged is in the store already."""

    def __str__(self) -> str:
        return shown(self.uri)

    def asked(self) -> dict[str, Any] | None:
        """What the folder's study was asked for; None where it is new."""
        found = None if self._study is None else self.document("study.json")
        asked = found.get("asked") if found else None
        return asked if isinstance(asked, dict) else None

    def study(self, asked: Mapping[str, Any], target: Target | None = None) -> str:
        """Begins the study's own run, or finds it, and keeps in `study.json` what is asked for.

        Returns:
            The run's id.
        """
        self._look()  # another process may have begun it meanwhile
        if self._study is None:
            run = self._begin(self.title, {"rightbatch.kind": "study"})
            self._study = run.info.run_id
            if not self._own:
                told = {"schema": SCHEMA, "uri": shown(self.uri), "study": self._study}
                write_whole(self.folder / POINTER, as_json(told))
        else:
            tried(lambda: self._client.update_run(self._id, status="RUNNING"))
        if self.asked() != json.loads(as_json(asked)):
            tags = {
                "rightbatch.title": self.title,
                "rightbatch.target": "" if target is None else as_json(vars(target)),
            }
            tried(lambda: self._client.log_batch(self._id, tags=as_tags(tags)))
            self.artifact("study.json", {"title": self.title, "asked": dict(asked)})
        return self._id

    def finish(self) -> None:
        """The study's own run has ended, until more of it is asked for."""
        tried(lambda: self._client.set_terminated(self._id, "FINISHED"))

    def artifact(self, name: str, document: Mapping[str, Any]) -> None:
        """Keeps a JSON document with the study's run. What is no number becomes null."""
        self._artifacts.put(self._id, name, {"schema": SCHEMA, **document})

    def document(self, name: str, run: str | None = None) -> dict[str, Any] | None:
        """Reads one back, of the study or of one of its runs; None where there is none."""
        return self._artifacts.get(run or self._id, name)

    def runs(self) -> dict[str, StoredRun]:
        """The newest try at each run, by `RunKey.name`."""
        newest: dict[str, StoredRun] = {}
        for run in self._children():
            self._newest = max(self._newest, run.info.start_time)
            found = stored(run)
            if found is not None:
                newest.setdefault(found.key.name, found)
        return newest

    def abandon(self, reason: str = "the sweep that ran it is gone") -> list[StoredRun]:
        """Marks what still counts as running as stopped: for a sweep that is the only one.

        Returns:
            The tries that were marked, as they were.
        """
        running = self._children(" and attributes.status = 'RUNNING'")
        for run in running:
            end(self._client, run.info.run_id, "stopped", reason)
        return [found for run in running if (found := stored(run)) is not None]

    def begin(self, key: RunKey, parameters: Mapping[str, Any]) -> RunLog:
        """Begins a try at a run; `parameters` that are None may follow later."""
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
        """Of this study's runs."""
        from rightbatch._study.store.reader import Reader

        return Reader(self.uri, study=self._id)

    @property
    def _id(self) -> str:
        if self._study is None:
            raise RuntimeError("study() comes first")
        return self._study

    def _look(self) -> None:
        if self._study is None and (parent := self._parent()) is not None:
            self._study = parent.info.run_id
            self._experiment = parent.info.experiment_id

    def _parent(self) -> Any:
        """The study's run, or None. A store that others use too is asked only for the one that is
        written down in the folder."""
        from mlflow.exceptions import MlflowException

        if self._own:
            wanted = "tags.`rightbatch.kind` = 'study'"
            return next(iter(search(self._client, self._experiments(), wanted, most=1)), None)
        told = pointer(self.folder)
        if told is None:
            return None
        try:
            run = self._client.get_run(told["study"])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _children(self, also: str = "") -> Iterable[Any]:
        experiments = [self._experiment] if self._experiment else []
        wanted = f"tags.`mlflow.parentRunId` = '{self._id}'{also}"
        return search(self._client, experiments, wanted)

    def _experiments(self) -> list[str]:
        return [found.experiment_id for found in self._client.search_experiments()]

    def _home(self) -> str:
        """The experiment of the study, made where it is missing."""
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
        """Of two tries at a run the newest counts, whatever becomes of the clock meanwhile."""
        self._newest = started = max(self._newest + 1, time.time_ns() // 10**6)
        home = self._home()
        return tried(lambda: self._client.create_run(home, started, dict(tags), name))
