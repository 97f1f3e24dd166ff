"""Runs out of MLflow's tables in a SQLite file, read without MLflow.

Importing MLflow takes seconds, and its own call for a metric's history reads one metric of one run
as objects: 500 runs of 2,000 points and 7 metrics take it ten minutes. MLflow would also add its
tables to a file that lacks some; a database whose tables are not as expected is refused.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rightbatch._errors import RightbatchError
from rightbatch._study.store.artifacts import Artifacts
from rightbatch._study.store.history import History, Keep, Numbers
from rightbatch._study.store.run_record import Latest, RunRecord, stored_value
from rightbatch._study.store.sqlite_file import SqliteFile

_NAMES = "select key from latest_metrics where run_uuid = ?"
_LAST = "select max(rowid) from metrics where run_uuid = ?"
# Numbers only, which numpy takes as they come; infinity, which MLflow does not store, is for NaN.
_ROWS = (
    "select case key {} else -1 end, step, timestamp, case is_nan when 0 then value else 9e999 end"
    " from metrics where run_uuid = ? and rowid > ?"
)


@dataclass(frozen=True)
class Rows:
    """A run's metrics up to the row `last`. `codes` index `names`, one for each column of
    `numbers`, which are steps, stamps and values."""

    names: tuple[str, ...]
    codes: NDArray[np.int32]
    numbers: Numbers
    last: int

    def histories(self, keep: Keep) -> dict[str, History]:
        order = np.argsort(self.codes, kind="stable")
        cuts = np.searchsorted(self.codes[order], np.arange(1, len(self.names)))
        parts = np.split(self.numbers[:, order], cuts, axis=1)
        return {
            name: History.of(part, keep)
            for name, part in zip(self.names, parts, strict=False)  # no names, one empty part
        }


NO_ROWS = Rows((), np.empty(0, np.int32), np.empty((3, 0)), -1)


class SqliteSource:
    """The runs in a database file. Safe to use from several threads.

    Args:
        path: of the file.
        artifacts: the folder of the runs' documents; by default beside the file.

    Raises:
        UsageError: if the file is not a database of MLflow's with the tables that are read.
        RightbatchError: from every other method, if it can no longer be read.
    """

    def __init__(self, path: Path, artifacts: Path | None = None) -> None:
        self.artifacts = Artifacts(None, artifacts or path.parent / "artifacts")
        self._path = path
        self._lock = threading.Lock()
        self._file = SqliteFile(path)
        self._growing: dict[str, Rows] = {}

    def state(self) -> str:
        """Another text after every write; empty where there is no file.

        File times alone are too coarse for two writes in a row, and SQLite's own count is for one
        connection only.
        """
        parts = []
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                found = self._path.with_name(self._path.name + suffix).stat()
                if found.st_size:
                    parts.append(f"{found.st_mtime_ns:x}.{found.st_size:x}")
        if parts:
            with self._lock, contextlib.suppress(sqlite3.Error, RightbatchError, OSError):
                parts += map(str, self._file.open().execute("pragma data_version").fetchone())
        return "-".join(parts)

    def experiments(self) -> dict[str, str]:
        """Names by id."""
        query = "select experiment_id, name from experiments where lifecycle_stage = 'active'"
        with self._reading() as connection:
            return {str(id): str(name) for id, name in connection.execute(query)}

    def get(self, id: str) -> RunRecord | None:
        """A run by its id."""
        found = self._read("run_uuid = ?", (id,))
        return found[0] if found else None

    def search(
        self, experiments: Sequence[str], tags: dict[str, str] | None = None
    ) -> list[RunRecord]:
        """The runs of these experiments that have these tags, the oldest first."""
        where = f"experiment_id in ({', '.join('?' * len(experiments))})"
        values = [*experiments]
        for key, value in (tags or {}).items():
            where += " and run_uuid in (select run_uuid from tags where key = ? and value = ?)"
            values += (key, value)
        return self._read(where, values)

    def _read(self, where: str, values: Sequence[str]) -> list[RunRecord]:
        chosen = f"from runs where lifecycle_stage = 'active' and {where}"
        columns = (
            "run_uuid, ifnull(name, ''), cast(experiment_id as text), status, ifnull(start_time, 0)"
        )
        of_chosen = f"where run_uuid in (select run_uuid {chosen})"
        tags: dict[str, dict[str, str]] = defaultdict(dict)
        parameters: dict[str, dict[str, str]] = defaultdict(dict)
        latest: dict[str, dict[str, Latest]] = defaultdict(dict)
        with self._reading() as connection:
            connection.execute("begin")  # the queries see one moment
            try:
                found = connection.execute(
                    f"select {columns} {chosen} order by start_time, run_uuid", values
                )
                rows = found.fetchall()
                for table, texts in (("tags", tags), ("params", parameters)):
                    query = f"select run_uuid, key, value from {table} {of_chosen}"
                    for run, key, text in connection.execute(query, values):
                        texts[run][key] = text or ""
                columns = "run_uuid, key, value, is_nan, step, timestamp"
                query = f"select {columns} from latest_metrics {of_chosen}"
                for run, key, value, is_nan, step, at in connection.execute(query, values):
                    number = math.nan if is_nan else stored_value(value)
                    latest[run][key] = Latest(number, step, at)
            finally:
                connection.execute("rollback")
        return [
            RunRecord(
                id, name or "", str(of), status, at or 0, tags[id], parameters[id], latest[id]
            )
            for id, name, of, status, at in rows
        ]

    def histories(
        self, run: RunRecord, names: Sequence[str], keep: Keep = "last"
    ) -> dict[str, History]:
        """All metrics of a run, which takes no longer than one of them.

        The rows of a run that trains are kept, and only newer ones are read the next time.
        """
        rows = self.rows(run.id, self._growing.pop(run.id, NO_ROWS))
        if run.status == "running":
            self._growing[run.id] = rows
        return rows.histories(keep)

    def rows(self, id: str, before: Rows) -> Rows:
        """What a run has logged; `before` is what is known of it, so that only the rest is read."""
        with self._reading() as connection:
            connection.execute("begin")
            try:
                found = connection.execute(_NAMES, (id,)).fetchall()
                names = tuple(dict.fromkeys((*before.names, *(name for (name,) in found))))
                (last,) = connection.execute(_LAST, (id,)).fetchone()
                if not names or last is None or last <= before.last:
                    return before
                codes = " ".join(f"when ? then {code}" for code in range(len(names)))
                rows = connection.execute(_ROWS.format(codes), (*names, id, before.last))
                flat = np.fromiter(chain.from_iterable(rows), np.float64)
            finally:
                connection.execute("rollback")
        new = flat.reshape(-1, 4).T
        new = new[:, new[0] >= 0]
        new[3, np.isinf(new[3])] = np.nan
        return Rows(
            names,
            np.concatenate((before.codes, new[0].astype(np.int32))),
            np.concatenate((before.numbers, new[1:]), axis=1),
            last,
        )

    def close(self) -> None:
        """Close the file; the next query opens it again."""
        with self._lock:
            self._file.close()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._file.open()
            except (sqlite3.Error, OSError, TypeError, ValueError, OverflowError) as error:
                if isinstance(error, RightbatchError):
                    raise
                raise RightbatchError(f"{self._path} cannot be read: {error}") from error
