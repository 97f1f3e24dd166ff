"""How soon `import rightbatch` and the command line are there."""

from __future__ import annotations

from typing import Any

from benchmarks.page.provenance import provenance
from benchmarks.startup import REPEATS, table


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Show the table."""
    document = stored["startup"]
    return f"""\
Whole processes, {REPEATS} times each, beside an interpreter that does nothing.

{table(document["milliseconds"])}
{provenance(document)}"""
