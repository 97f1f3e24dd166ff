"""What the parts have in common: their command line, and how their results are written."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks import _record
from benchmarks._record import say

WORK = Path(tempfile.gettempdir()) / "rightbatch-benchmark-study"
"""What is kept between two runs, and where the results of a quick one go."""
_PACKAGES = ("mlflow", "plotly", "starlette", "uvicorn", "scikit-learn", "playwright")
_BUSY = 0.1


class Part:
    """One benchmark: `--quick` shows that it works, `--to` is the folder of its results."""

    def __init__(self, name: str, description: str | None, **counts: int) -> None:
        """`counts` are further options, whole numbers with their defaults."""
        parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
        parser.add_argument("--quick", action="store_true", help="small, to see that it works")
        parser.add_argument("--to", type=Path, help="a folder; default: benchmarks/results")
        for option, default in counts.items():
            parser.add_argument(f"--{option}", type=int, help=f"default: {default}")
        asked = parser.parse_args()
        self.name, self.quick = name, asked.quick
        self.counts = {
            option: getattr(asked, option) or (min(default, 3) if self.quick else default)
            for option, default in counts.items()
        }
        self._to = asked.to or (WORK / "quick" if self.quick else _record.RESULTS)
        WORK.mkdir(exist_ok=True)
        self._busy = psutil.cpu_percent(2.0) / 100
        if self._busy > _BUSY:
            say(f"this machine is busy ({self._busy:.0%}): times will be too long")

    def save(self, document: dict[str, Any], table: Callable[[dict[str, Any]], str]) -> None:
        """Write `study_NAME.json`, and print the table of it."""
        self._to.mkdir(parents=True, exist_ok=True)
        _record.RESULTS = self._to
        head = {"versions": _record.about()["versions"] | _versions()}
        document = head | {"quick": self.quick, "busy_before": self._busy} | document
        _record.save(f"study_{self.name}", document, table(document))


def figures(document: dict[str, Any], introduction: str, rows: Sequence[str]) -> str:
    """Lay out what was measured: a paragraph, the figures beside their goals, and reservations."""
    lines = [f"{introduction}\n", "| figure | measured | goal |", "|---|---|---|", *rows]
    if document["quick"]:
        lines.append("\nThis was a small run (`--quick`): fewer sizes or seeds than the full one.")
    if document["busy_before"] > _BUSY:
        lines.append(f"\nThe machine was {document['busy_before']:.0%} busy before the run began.")
    return "\n".join(lines) + "\n"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def spread(values: Sequence[float], unit: str = "s", factor: float = 1.0) -> str:
    """Median, least and most, and of how many."""
    if not values:
        return "nothing"
    middle, low, high = (factor * f(values) for f in (statistics.median, min, max))
    if len(values) == 1:
        return f"{middle:.3g} {unit}"
    return f"{middle:.3g} {unit} ({low:.3g} to {high:.3g}, {len(values)} times)"


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
