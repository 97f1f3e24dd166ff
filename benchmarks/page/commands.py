"""Commands: what `run` saw of the gallery's scripts, and what `fit` answered."""

from __future__ import annotations

from typing import Any

from benchmarks.commands import BATCH, MAX_BATCH, MEMORY, is_same, table
from benchmarks.page.provenance import provenance


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Show the table."""
    document = stored["commands"]
    scripts = document["scripts"]
    ran = [found for found in scripts.values() if not found["exit_codes"][0]]
    same = sum(map(is_same, ran))
    return f"""\
Scripts as people write them ([the gallery](../tests/commands/gallery)), each alone and under
`rightbatch run` with `{{batch}}` = {BATCH}. Losses and weights are equal bit for bit in {same} of
{len(ran)} that run here. `fit` is that of the command within {MEMORY}, up to {MAX_BATCH}.

{table(scripts)}
{provenance(document)}"""
