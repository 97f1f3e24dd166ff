"""Runs out of a store of MLflow's: those of a study, or whatever other loggers wrote there.

A run that has ended is read once. Of one that trains, only what is new is read again.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self

from rightbatch._errors import RightbatchError, UsageError
from rightbatch._study.records import Run, Target
from rightbatch._study.store import mlflow_import as foreign
from rightbatch._study.store import mlflow_native as ours
from rightbatch._study.store.artifacts import Artifacts
from rightbatch._study.store.curves import Curves
from rightbatch._study.store.locations import client_of, place_of, scope_of
from rightbatch._study.store.metric_history import NO_ROWS, Counts, Database
from rightbatch._study.store.mlflow_runs import latest, search
from rightbatch._study.store.run_log import AXES_LOGGED

BETWEEN_QUESTIONS = 2.0
"""Seconds, whether anything has changed in a store that is not a file here."""

BETWEEN_ROUNDS = 30.0
"""Seconds after which all runs are asked for again, not only those that train and are new; more
where that takes more than a hundredth of them."""

NEWEST = 5
"""Runs that are looked at for new ones."""


class Reader:
    """The runs of a store, for the page, the report and the result of a study. Safe to use from
    several threads.

    Args:
        source: a study's folder, or any with an `mlflow.db` or `mlruns` in it; a database file; the
            URI of a store or of a tracking server.
        experiment: takes all runs of this experiment of MLflow's. Else those of the newest study
            are taken, or, where there is none, all.
        study: takes those of the study that has this run of MLflow's.

    Raises:
        MissingExtraError: without MLflow.
        UsageError: if nothing can be read there; the message says what would.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        experiment: str | None = None,
        study: str | None = None,
    ) -> None:
        self._place = place_of(source)
        self._client = client_of(self._place)
        self._database = Database(self._place.database) if self._place.database else None
        study = study or (None if experiment else self._place.study)
        self._find = functools.partial(scope_of, self._client, self._place.name, experiment, study)
        self._scope = self._find()
        self._lock = threading.RLock()
        self._known: dict[str, _Known] = {}
        self._listed: list[Run] = []
        self._changes = 0
        self._state: str | None = None
        self._asked = self._next_round = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def uri(self) -> str:
        """Of the store, as MLflow takes it."""
        return self._place.uri

    @property
    def title(self) -> str:
        """Of the study, or the name of what was opened."""
        return self._scope.title

    @property
    def target(self) -> Target | None:
        """Of the study."""
        return self._scope.target

    def revision(self) -> str:
        """Another one once anything has changed. Costs a look at the file, or, for a store that is
        elsewhere, a question every two seconds."""
        if self._database is not None:
            return self._database.state()
        with self._lock:
            if monotonic() - self._asked >= BETWEEN_QUESTIONS:
                self.runs()
            return str(self._changes)

    def runs(self) -> list[Run]:
        """All runs, the oldest first; their curves are read when they are looked at.

        Of several tries at one run of a study the newest counts, and the others are stopped.

        Raises:
            RightbatchError: if the store cannot be read any more.
        """
        with self._lock:
            state = None if self._database is None else self._database.state()
            if state == "":
                raise UsageError(f"{self._place.database} is not there any more")
            if state is None or state != self._state:
                self._refresh(now := monotonic())
                # That of before: what was written meanwhile is read the next time.
                self._state, self._asked = state, now
            return list(self._listed)

    def read(self, told: Callable[[int, int], object] | None = None) -> list[Run]:
        """All runs with all their curves; `told` hears how many runs of how many are read."""
        runs = self.runs()
        for number, run in enumerate(runs, 1):
            for name in run.curves:
                run.curves[name]
            if told is not None:
                told(number, len(runs))
        return runs

    def events(self, id: str) -> list[dict[str, Any]]:
        """What happened in a run of a study, as it told at its end: micro-batches that changed,
        memory that ran out."""
        database = self._place.database
        root = None if database is None else database.parent / "artifacts"
        told = Artifacts(self._client, root).get(id, "run.json")
        return list(told.get("events", ())) if told else []

    def close(self) -> None:
        """Lets the file go."""
        if self._database is not None:
            self._database.close()

    def _refresh(self, now: float) -> None:
        from mlflow.exceptions import MlflowException

        try:
            if not self._known or now >= self._next_round:
                self._scope = self._find()
                found = {run.info.run_id: run for run in self._search()}
                gone = self._known.keys() - found.keys()
                took = monotonic() - now
                self._next_round = now + max(BETWEEN_ROUNDS, 100 * took)
            else:
                found, gone = self._changed()
        except MlflowException as error:
            raise RightbatchError(f"the store of runs does not answer: {error}") from error
        changed = bool(gone)
        for id in gone:
            del self._known[id]
        for id, run in found.items():
            before = self._known.get(id)
            mark = _mark(run)
            if before is None or before.mark != mark:
                self._known[id] = self._made(run, mark, before)
                changed = True
        if changed:
            self._changes += 1
            in_order = sorted(self._known.values(), key=lambda one: (one.run.started, one.run.id))
            self._listed = ours.newest_count((one.same, one.run) for one in in_order)

    def _changed(self) -> tuple[dict[str, Any], set[str]]:
        """What trains, what trained when last seen, and what is new; and what was deleted of it."""
        newest = self._search(most=NEWEST)
        if newest and all(run.info.run_id not in self._known for run in newest):
            newest = self._search()
        running = self._search("attributes.status = 'RUNNING'")
        found = {run.info.run_id: run for run in (*newest, *running)}
        gone = set()
        for id, known in self._known.items():
            if known.run.status == "running" and id not in found:
                run = self._client.get_run(id)
                if run.info.lifecycle_stage == "active":
                    found[id] = run
                else:
                    gone.add(id)
        return found, gone

    def _search(self, wanted: str = "", most: int | None = None) -> list[Any]:
        both = " and ".join(part for part in (self._scope.wanted, wanted) if part)
        found = search(self._client, self._scope.experiments, both, most=most)
        return [run for run in found if run.data.tags.get("rightbatch.kind") != "study"]

    def _made(self, run: Any, mark: str, before: _Known | None) -> _Known:
        values = latest(run)
        axes: tuple[str, ...] = AXES_LOGGED
        counts: Counts = "last"
        names, drawn, make = ours.names(values), ours.curve, ours.run
        if not ours.is_ours(run):
            facts, started = foreign.facts(run.data.params), run.info.start_time / 1000
            names, axes, make = foreign.names(values), (foreign.EPOCH,), foreign.run
            drawn, counts = functools.partial(foreign.curve, facts, started), facts.counts
        curves = Curves(
            run.info.run_id,
            names,
            [axis for axis in axes if axis in values],
            drawn,
            client=self._client,
            database=self._database,
            counts=counts,
            goes_on=run.info.status == "RUNNING",
            rows=before.curves.rows if before else NO_ROWS,
        )
        return _Known(make(run, values, curves), ours.same(run), mark, curves)


@dataclass(frozen=True)
class _Known:
    """A run as it was last seen, when MLflow told `mark` of it."""

    run: Run
    same: tuple[str, str] | None
    mark: str
    curves: Curves


def _mark(run: Any) -> str:
    """Another one once anything was logged."""
    parts = (latest(run), run.data.params, run.data.tags)
    return repr((run.info.status, run.info.run_name, *(sorted(part.items()) for part in parts)))
