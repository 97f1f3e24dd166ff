"""`Elastic`: what it costs, how exact it is, and what a failure costs."""

from __future__ import annotations

from typing import Any

from benchmarks.elastic.table import table
from benchmarks.page.goals import Goal, goals
from benchmarks.page.provenance import provenance

_APART = 10.0
"""So many times further apart than two undisturbed sizes is worth an explanation."""


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Tables, goals, and what they do not show."""
    document = stored["elastic"]
    found = {part: result["found"] for part, result in document["results"].items()}
    own = {name: one["own_share"] for name, one in found["overhead"].items()}
    return f"""\
*Elastic's own time* is what passes outside of the loss, `backward` and the optimizer beyond the
same of a plain loop, plus what the optimizer's step takes longer in chunks that can be undone
than in one piece. Copies of the chunks are most of it; a fused optimizer needs none. Failures are
injected at random places; *two undisturbed sizes* is how far trainings at the same two
micro-batch sizes end apart without any failure. Values are relative differences.

{table(document["results"])}
{goals(Goal("own time at most 1% of a step", own, lambda value: value <= 0.01, "{:.2%}".format))}
{_exactness(found["exactness"])}
{_overlap(found["overlap"])}
Ultralytics' own retry halves the batch and starts again in the first epoch, and ends the training
in later ones. [What each integration survives](elastic.md#inside-frameworks) is tested.

{provenance(document, packages=("torch", "accelerate", "ultralytics"))}"""


def _exactness(cases: list[dict[str, Any]]) -> str:
    apart = [case for case in cases if case["end"] > _APART * case["two_sizes"]]
    if not apart:
        return ""
    listed = "; ".join(
        f"{case['task']} under {case['optimizer']} in {case['dtype']}: {case['end']:.1e} beside "
        f"{case['two_sizes']:.1e}"
        for case in apart
    )
    return (
        f"Further apart than two undisturbed sizes: {listed}. With ReLU a value near zero turns "
        "its unit on or off, depending on the order of a sum; GELU has no such step.\n"
    )


def _overlap(found: dict[str, Any]) -> str:
    same = all(
        one[key]["low"] <= 1 <= one[key]["high"]
        for one in found.values()
        for key in ("after_over_during", "during_over_ddp")
    )
    told = (
        "makes no measurable difference, and costs nothing beside DDP's own loop"
        if same
        else "makes the difference shown above"
    )
    return (
        f"Sending gradients during the backward pass {told}: {', '.join(found)}, processes on the "
        "cores of one machine. Between machines or GPUs it was not measured.\n"
    )
