"""Commands: what `run` saw of the gallery's scripts, and what `fit` answered."""

from __future__ import annotations

from typing import Any

from benchmarks.commands import BATCH, VERBS, is_same, table
from benchmarks.page.provenance import provenance


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Show the table."""
    document = stored["commands"]
    scripts = document["scripts"]
    ran = [found for found in scripts.values() if not found["exit_codes"][0]]
    same = sum(map(is_same, ran))
    options = "; ".join(f"`{verb} {' '.join(given)}`" for verb, given in VERBS.items())
    return f"""\
Scripts as people write them ([the gallery](../tests/commands/gallery)), each alone and under
`rightbatch run` with `{{batch}}` = {BATCH}. Losses and weights are equal bit for bit in {same} of
{len(ran)} that run here. {options}.

{table(scripts)}
{provenance(document)}"""
