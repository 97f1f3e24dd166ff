"""The tables of the docs."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

RESAMPLES = 2000


def ratio(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of one/other over paired seeds, with a 95% bootstrap interval."""
    logs = [math.log(a / b) for a, b in zip(one, other, strict=True)]
    draw = random.Random(0)
    means = sorted(statistics.fmean(draw.choices(logs, k=len(logs))) for _ in range(RESAMPLES))
    low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES)]
    return math.exp(statistics.fmean(logs)), math.exp(low), math.exp(high)


def table(results: dict[str, Any]) -> str:
    results = {part: result["found"] for part, result in results.items()}
    text = ""
    if "curves" in results:
        text += (
            "| task | target | S_min | E_min | B_crit | rms log error | noise scale at the weights "
            "| at their average | between ÷ B_crit |\n|---|---|---|---|---|---|---|---|---|\n"
        )
        for name, found in results["curves"].items():
            plans = results.get("choice", {}).get(name, {}).get("plans", [])
            here, there = (
                [plan[key]["value"] or plan[key]["low"] for plan in plans if plan[key]]
                for key in ("noise_scale", "averaged_noise_scale")
            )
            share = ""
            if here and there:
                between = math.sqrt(statistics.median(here) * statistics.median(there))
                share = f"{between / found['b_crit']:.2f}"
            text += (
                f"| {name} | loss {found['target']} | {found['s_min']:.0f} | {found['e_min']:.0f} "
                f"| {found['b_crit']:.0f} | {found['rms_log_error']:.1%} "
                f"| {', '.join(f'{value:.0f}' for value in here)} "
                f"| {', '.join(f'{value:.0f}' for value in there)} | {share} |\n"
            )
    if "choice" in results:
        text += (
            "\n| task | tuned | ÷ best of the grid | default 16 ÷ tuned | largest of the grid ÷ "
            "tuned | with the tuning, ÷ best | A/A |\n|---|---|---|---|---|---|---|\n"
        )
        for name, found in results["choice"].items():
            text += _choice_row(name, found)
    if "growth" in results:
        text += (
            "\n| task | growing ÷ best fixed size, time | steps | growing ÷ tuned size, time "
            "| steps | sizes |\n|---|---|---|---|---|---|\n"
        )
        for name, runs in results["growth"].items():
            columns = []
            for other in ("best", "tuned"):
                for key in ("seconds", "steps"):
                    values = ([run[key] for run in runs[kind]] for kind in ("growing", other))
                    columns.append(_with_interval(ratio(*values)))
            grown = " · ".join(
                " → ".join(str(size) for size in run["sizes"]) for run in runs["growing"]
            )
            text += f"| {name} | {' | '.join(columns)} | {grown} |\n"
    return text


def _choice_row(name: str, found: dict[str, Any]) -> str:
    seconds = {kind: [run["seconds"] for run in runs] for kind, runs in found["runs"].items()}
    plan = found["plans"][0]
    included = [value + plan["seconds"] for value in seconds["tuned"]]
    sizes = ", ".join(str(each["batch_size"]) for each in found["plans"])
    best = found["runs"]["best"][0]["batch_size"]
    cells = [
        f"{_with_interval(ratio(seconds['tuned'], seconds['best']))} ({best})",
        _with_interval(ratio(seconds["default"], seconds["tuned"])),
        _with_interval(ratio(seconds["largest"], seconds["tuned"])),
        _with_interval(ratio(included, seconds["best"])),
        _with_interval(ratio(seconds["default again"], seconds["default"])),
    ]
    return f"| {name} | {sizes} | {' | '.join(cells)} |\n"


def _with_interval(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"
