"""`tune` against trainings at every batch size."""

from __future__ import annotations

import math
import statistics
from typing import Any

from benchmarks.page.goals import Goal, goals
from benchmarks.page.provenance import provenance
from benchmarks.tune.runs import geometric
from benchmarks.tune.table import ratio, table


def section(stored: dict[str, dict[str, Any]]) -> str:
    """Tables, goals, and why some are missed."""
    document = stored["tune"]
    found = {part: result["found"] for part, result in document["results"].items()}
    return f"""\
Trainings at every size to a fixed loss on unseen data, fitted by S = S_min + E_min/B: learning
rates tuned on a grid for every size (YOLO26n: one rate, by Ultralytics' own rule), with several
seeds ({_seeds(found["curves"])}). Then `tune` runs on the same workloads, and trainings at its
size beside others. *cifar* is a CNN under SGD with momentum, *shakespeare* a character
transformer under Adam, *yolo26n* a detector under AdamW. *÷* compares seconds to the target:
geometric means over the seeds. The noise scale is given for each run of `tune`, at the weights
and at their average; *between* is their geometric mean, with which `tune` weighs sizes
([why](how-tune-works.md#two-noise-scales)).

{table(document["results"])}
{_goals(found)}
{_reasons(found)}
### Updates and examples to the target

{_sizes(found["curves"])}
Every size reaches the same loss. What differs is what it costs: larger batches take fewer
updates, but not in proportion, and more examples ([what batch size does to
results](batch-size-and-results.md)).

{provenance(document, packages=("torch", "ultralytics"))}"""


def _goals(found: dict[str, Any]) -> str:
    curves, choice = found["curves"], found["choice"]
    between = {
        name: _between(choice[name]["plans"]) / curve["b_crit"] for name, curve in curves.items()
    }

    def compared(one: str, other: str) -> dict[str, float]:
        return {name: _ratio(task["runs"], one, other) for name, task in choice.items()}

    grown = {name: _ratio(runs, "growing", "best") for name, runs in found["growth"].items()}
    return goals(
        Goal(
            "rms log error of the curve at most 10%",
            {name: curve["rms_log_error"] for name, curve in curves.items()},
            lambda value: value <= 0.10,
            "{:.1%}".format,
        ),
        Goal(
            "between ÷ B_crit within a factor of 2",
            between,
            lambda value: 0.5 <= value <= 2,
            "{:.2f}".format,
        ),
        Goal(
            "tuned ÷ best of the grid at most 1.15",
            compared("tuned", "best"),
            lambda value: value <= 1.15,
            "{:.2f}".format,
        ),
        Goal(
            "tuned ÷ default at most 1.05",
            compared("tuned", "default"),
            lambda value: value <= 1.05,
            "{:.2f}".format,
        ),
        Goal(
            "largest of the grid ÷ tuned at least 1.3",
            compared("largest", "tuned"),
            lambda value: value >= 1.3,
            "{:.2f}".format,
        ),
        Goal(
            "growing ÷ best fixed size at most 1.05",
            grown,
            lambda value: value <= 1.05,
            "{:.2f}".format,
        ),
    )


def _reasons(found: dict[str, Any]) -> str:
    largest = [_ratio(task["runs"], "largest", "tuned") for task in found["choice"].values()]
    mean = math.exp(statistics.fmean(map(math.log, largest)))
    yolo = found["choice"]["yolo26n"]
    chosen, best = (yolo["runs"][kind][0]["batch_size"] for kind in ("tuned", "best"))
    grown = any(
        len(run["sizes"]) > 1 for runs in found["growth"].values() for run in runs["growing"]
    )
    plans = [plan["seconds"] for task in found["choice"].values() for plan in task["plans"]]
    growing = "" if grown else "In these trainings, which are short, growing batches never grew.\n"
    return f"""\
The largest size of the grid takes {mean:.1f} times as long as the tuned one in the geometric
mean. All sizes fit into memory here, so *largest* is the grid's end. For YOLO26n one learning
rate serves all sizes, which is too high for small ones: `tune` chose {chosen}, and {best} is
faster, since more examples per update at a fixed rate help it more than the model of `tune`
knows. Tuning took {min(plans):.0f} to {max(plans):.0f} s, many times what these small tasks take
to reach their target. {growing}"""


def _between(plans: list[dict[str, Any]]) -> float:
    """The geometric mean of the two noise scales, each the median of all plans."""
    middles = [
        statistics.median([plan[key]["value"] or plan[key]["low"] for plan in plans if plan[key]])
        for key in ("noise_scale", "averaged_noise_scale")
    ]
    return math.sqrt(math.prod(middles))


def _ratio(runs: dict[str, Any], one: str, other: str) -> float:
    """Seconds to the target at one size over those at another, seed by seed."""
    seconds = ([run["seconds"] for run in runs[kind]] for kind in (one, other))
    return ratio(*seconds)[0]


def _seeds(curves: dict[str, Any]) -> str:
    counts = {
        name: max(len(one["steps"]) for one in curve["sizes"].values())
        for name, curve in curves.items()
    }
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _sizes(curves: dict[str, Any]) -> str:
    sizes = sorted({int(size) for curve in curves.values() for size in curve["sizes"]})
    heads = [f"{name}: learning rate | updates | examples" for name in curves]
    lines = [f"| batch size | {' | '.join(heads)} |", "|---" * (1 + 3 * len(curves)) + "|"]
    for size in sizes:
        cells = []
        for curve in curves.values():
            one = curve["sizes"].get(str(size))
            if one is None:
                cells += ["–"] * 3
                continue
            steps = geometric(one["steps"])
            cells += [f"{one['learning_rate']:.3g}", f"{steps:,.0f}", f"{size * steps:,.0f}"]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
