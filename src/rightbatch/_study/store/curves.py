"""The curves of a run, read when the first of them is looked at."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rightbatch._study.records import Curve
from rightbatch._study.store.metric_history import NO_ROWS, Counts, Database, History, Rows, ask

Drawn = Callable[[str, Mapping[str, History]], Curve]
"""A metric's curve, of the histories of it and of the axes."""

_NOTHING = np.empty(0)
EMPTY = Curve(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING)


class Curves(Mapping[str, Curve]):
    """A run's curves by metric. Safe to use from several threads.

    Args:
        run: MLflow's id.
        names: of the metrics.
        axes: the metrics that tell where on the axes a step was.
        drawn: makes a curve.
        counts: which value of a step that was logged more than once.
        client: MLflow's.
        database: the same store's file, where it is one.
        goes_on: whether the run may log more: then `rows` are kept, for the curves that come after
            these to read only what is new.
        rows: from the curves that came before these.
    """

    def __init__(
        self,
        run: str,
        names: Sequence[str],
        axes: Collection[str],
        drawn: Drawn,
        *,
        client: Any,
        database: Database | None,
        counts: Counts = "last",
        goes_on: bool = False,
        rows: Rows = NO_ROWS,
    ) -> None:
        self.rows = rows
        self._run = run
        self._names = dict.fromkeys(names)
        self._axes = [name for name in axes if name not in self._names]
        self._drawn, self._counts = drawn, counts
        self._client = client
        self._database = database
        self._goes_on = goes_on
        self._lock = threading.Lock()
        self._made: dict[str, Curve] = {}
        self._asked: dict[str, History] = {}

    def __getitem__(self, name: str) -> Curve:
        if name not in self._names:
            raise KeyError(name)
        with self._lock:
            if name not in self._made:
                self._made |= self._make(name)
            return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Curves({', '.join(self._names)})"

    def _make(self, name: str) -> dict[str, Curve]:
        """Of a database all at once, which takes no longer than one of them."""
        if self._database is not None:
            try:
                rows = self._database.rows(self._run, self.rows)
            except (sqlite3.Error, ValueError, TypeError):
                self._database = None  # not as expected: MLflow knows how to read it
            else:
                self.rows = rows if self._goes_on else NO_ROWS
                histories = rows.histories(self._counts)
                return {name: self._curve(name, histories) for name in self._names}
        missing = [one for one in (name, *self._axes) if one not in self._asked]
        self._asked |= ask(self._client, self._run, missing, self._counts)
        return {name: self._curve(name, self._asked)}

    def _curve(self, name: str, histories: Mapping[str, History]) -> Curve:
        if name not in histories or not len(histories[name].steps):
            return EMPTY
        return self._drawn(name, histories)
