"""Commands: what the verbs answered for the gallery's scripts, and what the agent costs."""

from __future__ import annotations

from typing import Any

from benchmarks import agent
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
{provenance(document)}
{_agent(stored["agent"]["results"])}"""


def _agent(results: dict[str, Any]) -> str:
    found, cost = results["noise"]["found"], results["cost"]["found"]
    overlapping = sum(map(agent.overlaps, found))
    same = max(abs(agent.extra(one["mean_seconds"], "again")[0]) for one in cost)
    return f"""\
The noise scale of `run`, of loops with one micro-batch per step and with four, against gradients
of all parameters in the same training, from eight parts of the batch: the intervals overlap in
{overlapping} of {len(found)}. The agent's cost in a step is in processor time, from
{agent.ROUNDS} runs of each kind in turns (the median, the least and the most). Loops without an
agent differ from themselves by up to {same:.0%} here, so that the goal (1% or 0.2 ms of a step) is
neither met nor missed by these figures.

{agent.table(results)}
{provenance(results["cost"]["about"])}"""
