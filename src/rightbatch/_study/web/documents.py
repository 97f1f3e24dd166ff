"""What the page is drawn from: the study, the curves of a metric, one run closely."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from rightbatch._errors import UsageError
from rightbatch._study.analysis import document


@runtime_checkable
class Source(document.Source, Protocol):
    """A store of runs."""

    def revision(self) -> str:
        """Cheap, and another one once anything has changed."""
        ...


class Documents(Protocol):
    """The documents of a study, as JSON has them.

    Raises:
        UsageError: from `curves` and `run`, if there is no such metric or run.
    """

    def revision(self) -> str: ...

    def study(self) -> dict[str, Any]: ...

    def curves(self, metric: str) -> dict[str, Any]: ...

    def run(self, id: str) -> dict[str, Any]: ...


class OfSource:
    """The documents of a store."""

    def __init__(self, source: Source) -> None:
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


class Kept:
    """Documents as JSON, each made once for a revision, whoever asks for it and how often."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._lock = threading.Lock()
        self._revision = ""
        self._bodies: dict[tuple[str, ...], bytes] = {}

    def revision(self) -> str:
        """Of the newest documents."""
        return self._documents.revision()

    def study(self) -> bytes:
        return self._kept(("study",), self._documents.study)

    def curves(self, metric: str) -> bytes:
        return self._kept(("curves", metric), lambda: self._documents.curves(metric))

    def run(self, id: str) -> bytes:
        return self._kept(("run", id), lambda: self._documents.run(id))

    def _kept(self, key: tuple[str, ...], make: Callable[[], dict[str, Any]]) -> bytes:
        with self._lock:
            # Asked for first: a document may be newer than its revision, never older.
            revision = self._documents.revision()
            if revision != self._revision:
                self._revision, self._bodies = revision, {}
            if key not in self._bodies:
                self._bodies[key] = to_json(make()).encode()
            return self._bodies[key]


def to_json(content: Any) -> str:
    """JSON, where what is no number is null."""
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(content), separators=(",", ":"))


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
