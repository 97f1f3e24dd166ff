"""The runs in a store of MLflow's: those of a study, or those that other loggers wrote.

A run that has ended is read once. Of one that trains, only what is new is read again.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Self

from rightbatch._errors import UsageError
from rightbatch._study.records import Run, Target
from rightbatch._study.store.curves import Curves
from rightbatch._study.store.locations import find_scope, locate, open_source
from rightbatch._study.store.mlflow_import import ImportedRun
from rightbatch._study.store.mlflow_native import NativeRun, stop_superseded
from rightbatch._study.store.mlflow_source import RunSource
from rightbatch._study.store.run_record import RunRecord

POLL_SECONDS, POLL_SHARE = 2.0, 0.1
"""A store that is not a file here is read again after so many seconds, and later if reading it took
more than this share of them."""


class Reader:
    """The runs of a store, for the page, the report and the result of a study. Safe to use from
    several threads.

    Args:
        source: a study's folder, or any with an `mlflow.db` or `mlruns` in it; a database file; the
            URI of a store or of a tracking server. A database file is never written.
        store: the URI of the store with the runs of a study's folder, if they are elsewhere; by
            default that of `MLFLOW_TRACKING_URI`.
        experiment: read all runs of this experiment of MLflow's. Without it, read those of the
            newest study, or all if there is none.
        study: read those of the study whose own run has this id.

    Raises:
        MissingExtraError: without MLflow.
        UsageError: if there is nothing to read; the message says what to do.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        store: str | None = None,
        experiment: str | None = None,
        study: str | None = None,
    ) -> None:
        self._location = location = locate(source, store)
        self._source = open_source(location)
        study = study or (None if experiment else location.study)
        self._find = functools.partial(find_scope, self._source, location.name, experiment, study)
        self._scope = self._find()
        self._lock = threading.RLock()
        self._known: dict[str, _Known] = {}
        self._listed: list[Run] = []
        self._changes = 0
        self._state: str | None = None
        self._next_poll = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """Of the store, as MLflow takes it."""
        return self._location.uri

    @property
    def title(self) -> str:
        """Of the study, or the name of what was opened."""
        return self._scope.title

    @property
    def target(self) -> Target | None:
        """Of the study."""
        return self._scope.target

    def revision(self) -> str:
        """Another text after every change. Costs a look at the file; another store is read again
        every two seconds."""
        state = self._source.state()
        if state is not None:
            return state
        with self._lock:
            if monotonic() >= self._next_poll:
                self.runs()
            return str(self._changes)

    def runs(self) -> list[Run]:
        """All runs, the oldest first; their curves are read when they are used.

        Of several attempts at one run of a study the newest counts, and the others are stopped.

        Raises:
            RightbatchError: if the store can no longer be read.
        """
        with self._lock:
            state = self._source.state()
            if state == "":
                raise UsageError(f"{self._location.database} does not exist any more")
            if state is None or state != self._state:
                self._refresh()
                # The state before: what was written meanwhile is read the next time.
                self._state = state
            return list(self._listed)

    def read(self, on_progress: Callable[[int, int], object] | None = None) -> list[Run]:
        """All runs with all their curves; `on_progress` gets how many runs are read, and of how
        many."""
        runs = self.runs()
        for number, run in enumerate(runs, 1):
            for name in run.curves:
                run.curves[name]
            if on_progress is not None:
                on_progress(number, len(runs))
        return runs

    def events(self, id: str) -> list[dict[str, Any]]:
        """The events of a study's run, written at its end: changes of the micro-batch size,
        out-of-memory errors."""
        document = self._source.artifacts.get(id, "run.json")
        return list(document.get("events", ())) if document else []

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _refresh(self) -> None:
        began = monotonic()
        self._scope = self._find()
        records = self._source.search(self._scope.experiments, self._scope.tags)
        now = monotonic()
        self._next_poll = now + max(POLL_SECONDS, (now - began) / POLL_SHARE)
        before = self._known
        self._known = {
            record.id: _Known.of(record, self._source, before.get(record.id))
            for record in records
            if record.kind != "study"
        }
        if self._known != before:
            self._changes += 1
            self._listed = stop_superseded((one.record, one.run) for one in self._known.values())


@dataclass(frozen=True)
class _Known:
    """A run as it was read last, and what it was made of."""

    record: RunRecord
    run: Run = field(compare=False)

    @classmethod
    def of(cls, record: RunRecord, source: RunSource, before: _Known | None) -> _Known:
        if before is not None and before.record == record:
            return before
        kind = NativeRun(record) if record.kind == "run" else ImportedRun(record)
        read = functools.partial(source.histories, record, keep=kind.keep)
        axes = [axis for axis in kind.axes if axis in record.latest]
        return cls(record, kind.run(Curves(kind.names, axes, read, kind.curve)))
