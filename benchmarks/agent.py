"""What the agent in a command costs, and whether its noise scale is that of the same loop.

Cost: the loop of `benchmarks.agent_loop` runs alone and under `rightbatch run`, in turns, and takes
the processor time of its own steps; the same comparison between runs alone shows what the machine
does by itself. Noise scale: that of `rightbatch run` against gradients of all parameters in the
same training.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks._record import run_parts, say
from rightbatch._noise import estimate_from

LOOP = Path(__file__).with_name("agent_loop.py")
MODELS = ("mlp", "images", "batch norm", "language", "language, tied")
NOISE_STEPS = 300
STEPS = {"mlp": 2000, "images": 150, "language": 100}
"""Of the loops whose cost is measured."""
ROUNDS = 3
WARM_UP = 20
_RIGHTBATCH = [sys.executable, "-m", "rightbatch", "run"]


def main() -> None:
    parts = {
        "noise": lambda: [noise(model, parts) for model in MODELS for parts in (1, 4)],
        "cost": lambda: [cost(model, ROUNDS) for model in STEPS],
    }
    run_parts("agent", parts, table, __doc__)


def noise(model: str, accumulation: int) -> dict[str, Any]:
    """Compare the noise scale of a watched run with that of all gradients."""
    loop = ["--model", model, "--steps", str(NOISE_STEPS), "--accumulation", str(accumulation)]
    with tempfile.TemporaryDirectory() as folder:
        report, pairs = Path(folder) / "report.json", Path(folder) / "pairs.json"
        command = [sys.executable, str(LOOP), *loop]
        _run([*_RIGHTBATCH, "--report", str(report), "--", *command])
        _run([*command, "--reference", str(pairs)])
        seen = json.loads(report.read_text())
        reference = estimate_from(json.loads(pairs.read_text()))
    assert reference is not None
    say(f"{model}, {accumulation} parts: {seen['noise_scale']} against {reference}")
    return {
        "model": model,
        "accumulation": accumulation,
        "run": seen["noise_scale"],
        "reason": seen["noise_reason"],
        "reference": reference.to_dict(),
    }


def cost(model: str, rounds: int) -> dict[str, Any]:
    """Time the steps of a loop alone and watched, in turns."""
    means: dict[str, list[float]] = {"alone": [], "watched": [], "again": []}
    fast: dict[str, list[float]] = {kind: [] for kind in means}
    for _ in range(rounds):
        for kind in means:
            with tempfile.TemporaryDirectory() as folder:
                times = Path(folder) / "times.json"
                loop = ["--model", model, "--steps", str(STEPS[model]), "--times", str(times)]
                command = [sys.executable, str(LOOP), *loop]
                _run([*_RIGHTBATCH, "--", *command] if kind == "watched" else command)
                seconds = json.loads(times.read_text())[WARM_UP:]
                means[kind].append(statistics.fmean(seconds))
                fast[kind].append(statistics.quantiles(seconds, n=10)[0])
    return {"model": model, "mean_seconds": means, "fast_seconds": fast}


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True)


def overlaps(found: dict[str, Any]) -> bool:
    """Whether the two intervals have something in common; not if one is unknown."""
    seen, reference = found["run"], found["reference"]
    if seen is None:
        return False
    highs = [one["high"] if one["high"] is not None else float("inf") for one in (seen, reference)]
    return bool(max(seen["low"], reference["low"]) <= min(highs))


def extra(seconds: dict[str, list[float]], kind: str) -> tuple[float, float, float]:
    """Return the relative time that `kind` takes beyond the runs alone: median, least and most."""
    ratios = [a / b - 1 for a, b in zip(seconds[kind], seconds["alone"], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(results: dict[str, Any]) -> str:
    """A table for each part that was measured."""
    lines = []
    if "noise" in results:
        lines += [
            "| loop | noise scale of `run` | of all gradients | overlap |",
            "|---|---|---|---|",
        ]
        lines += [_noise_row(found) for found in results["noise"]["found"]]
    if "cost" in results:
        lines += [
            "",
            "| loop | step alone | watched | alone again | fastest tenth, watched | alone again |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_cost_row(found) for found in results["cost"]["found"]]
    return "\n".join(lines) + "\n"


def _noise_row(found: dict[str, Any]) -> str:
    parts = f", {found['accumulation']} parts" if found["accumulation"] > 1 else ""
    seen = _interval(found["run"]) or f"unknown: {found['reason']}"
    overlap = "yes" if overlaps(found) else "**no**"
    return f"| {found['model']}{parts} | {seen} | {_interval(found['reference'])} | {overlap} |"


def _cost_row(found: dict[str, Any]) -> str:
    seconds = found["mean_seconds"]
    shown = [
        f"{middle:+.1%} ({low:+.1%} to {high:+.1%})"
        for middle, low, high in (extra(seconds, kind) for kind in ("watched", "again"))
    ]
    shown += [f"{1000 * later(found, kind):+.2f} ms" for kind in ("watched", "again")]
    step = statistics.median(seconds["alone"])
    return f"| {found['model']} | {1000 * step:.2f} ms | {' | '.join(shown)} |"


def later(found: dict[str, Any], kind: str) -> float:
    """Return the seconds by which the fastest tenth of the steps is later than alone: median."""
    pairs = zip(found["fast_seconds"][kind], found["fast_seconds"]["alone"], strict=True)
    return statistics.median(a - b for a, b in pairs)


def _interval(one: dict[str, Any] | None) -> str:
    if one is None:
        return ""
    if one["value"] is None:
        return f"above {one['low']:.3g}"
    return f"{one['value']:.3g} ({one['low']:.3g} to {one['high']:.3g}, {one['steps']} steps)"


if __name__ == "__main__":
    main()
