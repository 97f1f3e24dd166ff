"""Kinds: what each verb says of other people's trainings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.page.provenance import provenance
from benchmarks.zoo import table


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Show the tables."""
    zoo, tasks = stored["zoo"], stored["zoo-ultralytics"]
    steps = _outcomes(zoo["kinds"].values())
    cells = _outcomes(tasks["kinds"].values())
    return f"""\
Small trainings after public reports: data, models, optimizers, losses, and those of Lightning and
Transformers ([tests/zoo](../tests/zoo)). *refused* is an error that names the thing and the way
round, *own* the kind's own error at a size that was asked for, and *failed* anything else.
{len(zoo["kinds"])} kinds: {_counted(steps)}. The steps of a verb run in one process.

{table(zoo["kinds"])}
{provenance(zoo)}
Ultralytics: each task with each verb by the command line, from tiny data sets; the user's files are
compared before and after. {_counted(cells)}; the other cells were not run yet.

{table(tasks["kinds"])}
{provenance(tasks)}"""


def _outcomes(kinds: Iterable[Mapping[str, Mapping[str, Any]]]) -> Counter[str]:
    return Counter(cell["outcome"] for cells in kinds for cell in cells.values())


def _counted(outcomes: Counter[str]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in outcomes.most_common())
