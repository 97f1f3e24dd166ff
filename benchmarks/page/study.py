"""`study`: the one that ships, its page, how live it is, and what kills do to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.page.provenance import provenance
from benchmarks.study import killed, live, page, shipped

_PARTS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "study_shipped": ("The shipped study", shipped.table),
    "study_page": ("The page of a large study", page.table),
    "study_live": ("The page while a study trains", live.table),
    "study_killed": ("A study that is killed", killed.table),
}


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Show the parts, one below the other."""
    parts = [
        f"### {title}\n\n{table(stored[name])}\n{provenance(stored[name], packages=_PACKAGES)}"
        for name, (title, table) in _PARTS.items()
    ]
    return "\n".join(parts)


_PACKAGES = ("torch", "mlflow", "plotly", "starlette", "playwright")
