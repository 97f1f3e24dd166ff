"""What a part found: rows, written one after the other so that a process that is ended loses none.

The process of a part has a `Report`; the file that it appends to is read by `runner`.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table: `what` was measured, `found`, beside its `goal`.

    `detail` has the figures as numbers, with units in their names. A row with `skipped` was not
    run, for that reason; one with `error` failed, with that traceback.
    """

    what: str
    found: str = ""
    goal: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    skipped: str = ""
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Report:
    """Where a part writes its rows, and what it was asked.

    `device` is `cuda` or `cpu`, `tiny` asks for the smallest run that executes everything,
    `deadline` is on the clock of `time.monotonic`, and `folder` takes files that belong to the
    results.
    """

    path: Path
    folder: Path
    device: str
    tiny: bool
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the process is ended."""
        return self.deadline - time.monotonic()

    def row(self, what: str, found: str, goal: str = "", **detail: Any) -> None:
        """Write one row; it is kept whatever happens next."""
        self._write({"row": Row(what, found, goal, detail).to_dict()})

    def skip(self, what: str, reason: str) -> None:
        self._write({"row": Row(what, skipped=reason).to_dict()})

    def about(self, **facts: Any) -> None:
        """Where this runs; once, before the first row."""
        self._write({"about": facts})

    def has(self, what: str, *packages: str) -> bool:
        """Whether all `packages` are installed; if not, a row says which ones `what` needs."""
        missing = missing_of(packages)
        if missing:
            self.skip(what, f"not installed: {', '.join(missing)}")
        return not missing

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """What fails inside becomes a row with its traceback, and the part goes on."""
        print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
        try:
            yield
        except Exception:
            self._write({"row": Row(what, error=traceback.format_exc()).to_dict()})

    def has_time(self, what: str, seconds: float) -> bool:
        """Whether `seconds` are left; if not, a row says so. A tiny run tries everything."""
        if self.tiny or self.left >= seconds:
            return True
        self.skip(what, f"{max(self.left, 0):.0f} s were left, it takes about {seconds:.0f} s")
        return False

    def _write(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry, default=str) + "\n")


def missing_of(packages: tuple[str, ...]) -> list[str]:
    """The packages that are not installed, by the names they are imported by."""
    return [name for name in packages if find_spec(name) is None]


def read_rows(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The facts and the rows of a part's file, as far as they were written."""
    facts: dict[str, Any] = {}
    rows: list[Row] = []
    if not path.exists():
        return facts, rows
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # the process was ended in the middle of a line
        facts |= entry.get("about", {})
        if "row" in entry:
            rows.append(Row(**entry["row"]))
    return facts, rows
