"""`NoiseScale` against exact noise scales, and what it costs."""

from __future__ import annotations

from typing import Any

from benchmarks.noise import COST_STEPS, overhead, table
from benchmarks.page.goals import Goal, goals
from benchmarks.page.provenance import provenance

_MOST = {"accumulating": 0.02, "one backward pass": 0.05}


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Tables, goals, and what a bound means."""
    document = stored["noise"]
    results: dict[str, Any] = document["results"]
    points = [point for found in results["cnn"].values() for point in found]
    errors = [abs(point["value"] / point["exact"] - 1) for point in points if point["value"]]
    covered = sum(
        point["low"] <= point["exact"] <= (point["high"] or float("inf")) for point in points
    )
    return f"""\
Weights are held still at several moments of a training, and the estimate is compared with a
closed form, or with the noise scale of all examples' own gradients. The cost is processor time
over {COST_STEPS} steps, alternating with a plain loop.

{table(results)}
Where the estimate has a value, it is within {max(errors):.0%} of the exact one; {covered} of
{len(points)} intervals contain the exact one. *Bound* means that the gradient is lost in noise:
so many examples give a lower bound only, and the estimate says so.

{_goals(results["cost"])}
{provenance(document)}"""


def _goals(cost: dict[str, Any]) -> str:
    def over(kind: str) -> dict[str, float]:
        return {name: overhead(kinds[kind])[0] for name, kinds in cost.items()}

    return goals(
        *(
            Goal(
                f"{kind}: at most {most:.0%} of a step",
                over(kind),
                lambda value, most=most: value <= most,  # type: ignore[misc]
                "{:.2%}".format,
            )
            for kind, most in _MOST.items()
        )
    )
