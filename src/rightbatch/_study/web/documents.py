"""The documents that the page draws: the study, the curves of a metric, one run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from rightbatch._errors import UsageError
from rightbatch._study.analysis import document
from rightbatch._study.json_text import to_json


@runtime_checkable
class LiveRuns(document.StudyRuns, Protocol):
    """Runs that may change, as in a store that a study writes to."""

    def revision(self) -> str:
        """Another text after every change; cheap."""
        ...


class Documents(Protocol):
    """The JSON documents of a study.

    Raises:
        UsageError: from `curves` and `run`, if there is no such metric or run.
    """

    def revision(self) -> str: ...

    def study(self) -> dict[str, Any]: ...

    def curves(self, metric: str) -> dict[str, Any]: ...

    def run(self, id: str) -> dict[str, Any]: ...


class StudyDocuments:
    """The documents of a store."""

    def __init__(self, source: LiveRuns) -> None:
        self._source = source

    def revision(self) -> str:
        return self._source.revision()

    def study(self) -> dict[str, Any]:
        return document.study(self._source)

    def curves(self, metric: str) -> dict[str, Any]:
        runs = self._source.runs()
        if not any(metric in run.curves for run in runs):
            raise UsageError(f"no run has logged {metric!r}")
        return document.curves(runs, metric, self._source.target)

    def run(self, id: str) -> dict[str, Any]:
        for run in self._source.runs():
            if run.id == id:
                events: Callable[[str], list[Any]] = getattr(self._source, "events", lambda id: [])
                return document.run(run) | {"events": events(id)}
        raise UsageError(f"there is no run {id!r}")


class CachedDocuments:
    """Encoded documents, each made once for a revision."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._lock = threading.Lock()
        self._revision = ""
        self._bodies: dict[tuple[str, ...], bytes] = {}

    def revision(self) -> str:
        """The revision of the newest documents."""
        return self._documents.revision()

    def study(self) -> bytes:
        return self._cached(("study",), self._documents.study)

    def curves(self, metric: str) -> bytes:
        return self._cached(("curves", metric), lambda: self._documents.curves(metric))

    def run(self, id: str) -> bytes:
        return self._cached(("run", id), lambda: self._documents.run(id))

    def _cached(self, key: tuple[str, ...], make: Callable[[], dict[str, Any]]) -> bytes:
        with self._lock:
            # Read first: a document may be newer than its revision, never older.
            revision = self._documents.revision()
            if revision != self._revision:
                self._revision, self._bodies = revision, {}
            if key not in self._bodies:
                self._bodies[key] = to_json(make()).encode()
            return self._bodies[key]
