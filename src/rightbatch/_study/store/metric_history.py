"""The values of a run's metrics, as fast as they can be had.

MLflow's own call reads one metric of one run as objects: 500 runs of 2,000 points and 7 metrics
take it ten minutes, since its index for that begins with the metric's name. A SQLite database is
therefore read through its table `metrics`, a run at a time; whatever is not as expected there, and
every other store, is read through MLflow.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rightbatch._study.store.mlflow_runs import LARGEST

Numbers = NDArray[np.float64]
Counts = Literal["first", "last"]
"""Which value of a step that was logged more than once."""

REQUESTS = 8
"""At once, to a tracking server."""


@dataclass(frozen=True)
class History:
    """A metric's values by step, each step once; `stamps` are milliseconds of Unix time."""

    steps: Numbers
    stamps: Numbers
    values: Numbers


@dataclass(frozen=True)
class Rows:
    """A run's metrics as they are in the database, up to the row `last`; `codes` index `names`."""

    names: tuple[str, ...]
    codes: NDArray[np.int32]
    numbers: Numbers  # steps, stamps, values
    last: int

    def histories(self, counts: Counts = "last") -> dict[str, History]:
        """By metric."""
        if not self.names:
            return {}
        order = np.lexsort((self.numbers[1], self.numbers[0], self.codes))
        codes, numbers = self.codes[order], self.numbers[:, order]
        cuts = np.searchsorted(codes, np.arange(1, len(self.names)))
        parts = np.split(numbers, cuts, axis=1)
        return {name: _history(part, counts) for name, part in zip(self.names, parts, strict=True)}


_NAMES = "select key from latest_metrics where run_uuid = ?"
_LAST = "select max(rowid) from metrics where run_uuid = ?"
# Numbers only, which numpy takes as they come; infinity, which MLflow does not keep, is NaN's.
_ROWS = (
    "select case key {} else -1 end, step, timestamp, case is_nan when 0 then value else 9e999 end"
    " from metrics where run_uuid = ? and rowid > ?"
)

NO_ROWS = Rows((), np.empty(0, np.int32), np.empty((3, 0)), -1)


class Database:
    """The metrics in a SQLite database of MLflow's. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def state(self) -> str:
        """Another one after every write; empty where there is no file. Times alone are too coarse
        for two writes in a row, and SQLite's own count is for one connection only."""
        told = []
        for suffix in ("", "-wal"):
            try:
                found = self._path.with_name(self._path.name + suffix).stat()
            except FileNotFoundError:
                continue
            if found.st_size:
                told.append(f"{found.st_mtime_ns:x}.{found.st_size:x}")
        if told:
            with self._lock, contextlib.suppress(sqlite3.Error):
                told += map(str, self._open().execute("pragma data_version").fetchone())
        return "-".join(told)

    def rows(self, run: str, before: Rows = NO_ROWS) -> Rows:
        """What a run has logged; `before` is what is known of it, so that only the rest is read.

        Raises:
            sqlite3.Error, ValueError, TypeError: if the database is not as it was in the MLflow
                that this was written for.
        """
        with self._lock:
            connection = self._open()
            connection.execute("begin")  # the questions are of one moment
            try:
                found = connection.execute(_NAMES, (run,)).fetchall()
                names = tuple(dict.fromkeys((*before.names, *(name for (name,) in found))))
                (last,) = connection.execute(_LAST, (run,)).fetchone()
                if not names or last is None or last <= before.last:
                    return before
                codes = " ".join(f"when ? then {code}" for code in range(len(names)))
                rows = connection.execute(_ROWS.format(codes), (*names, run, before.last))
                told = np.fromiter(chain.from_iterable(rows), np.float64)
            finally:
                connection.execute("rollback")
        new = told.reshape(-1, 4).T
        new = new[:, new[0] >= 0]
        new[3, np.isinf(new[3])] = np.nan
        return Rows(
            names,
            np.concatenate((before.codes, new[0].astype(np.int32))),
            np.concatenate((before.numbers, new[1:]), axis=1),
            last,
        )

    def close(self) -> None:
        """Lets the file go; the next question opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self) -> sqlite3.Connection:
        """For writing too, since what a killed writer left half done is taken back by the next who
        may; nothing is written."""
        if self._connection is None:
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=rw",
                uri=True,
                timeout=20,
                check_same_thread=False,
                isolation_level=None,
            )
            self._connection.execute("pragma query_only = on")
        return self._connection


def ask(
    client: Any, run: str, metrics: Iterable[str], counts: Counts = "last"
) -> dict[str, History]:
    """The same through MLflow's client, several requests at a time."""
    names = list(metrics)
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = pool.map(lambda name: client.get_metric_history(run, name), names)
        return {name: _told(told, counts) for name, told in zip(names, answers, strict=True)}


def _told(metrics: list[Any], counts: Counts) -> History:
    told = np.array([(one.step, one.timestamp, one.value) for one in metrics], np.float64)
    numbers = told.reshape(-1, 3).T
    return _history(numbers[:, np.lexsort((numbers[1], numbers[0]))], counts)


def _history(numbers: Numbers, counts: Counts) -> History:
    """Of what is in order."""
    steps, stamps, values = numbers
    other = steps[1:] != steps[:-1]
    kept = np.append(other, True) if counts == "last" else np.insert(other, 0, True)
    kept = kept[: len(steps)]
    values = np.where(np.abs(values) >= LARGEST, np.copysign(np.inf, values), values)
    return History(steps[kept], stamps[kept], values[kept])


def joined(histories: Mapping[str, History], name: str, steps: Numbers) -> Numbers:
    """What a metric was at these steps: between two of its own a mean of both, beyond NaN."""
    history = histories.get(name)
    if history is None or not len(history.steps):
        return np.full(len(steps), np.nan)
    if np.array_equal(history.steps, steps):
        return history.values
    return np.interp(steps, history.steps, history.values, left=np.nan, right=np.nan)
