"""Files that trials have made: the next trial of the same search may write them again."""

from __future__ import annotations

import json
import os


class Made:
    """The files that earlier trials have made and nobody has changed since.

    `path` is a JSON file that maps names to the time of their last change in nanoseconds.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._before: dict[str, int] | None = None
        self._reported: set[str] = set()

    def add(self, name: str) -> None:
        """Tell the parent that this trial makes a file."""
        if name not in self._reported:
            self._reported.add(name)
            from .connection import report

            report(event="makes", path=name)

    def __contains__(self, name: str) -> bool:
        if self._before is None:
            self._before = self._read()
        return self._before.get(name) == os.stat(name).st_ctime_ns

    def _read(self) -> dict[str, int]:
        if self._path is None:
            return {}
        try:
            with open(self._path, encoding="utf-8") as file:
                return dict(json.load(file))
        except (OSError, ValueError):
            return {}
