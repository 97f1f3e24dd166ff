"""`fit` under a real ceiling, beside the searches of Lightning and Accelerate.

For each workload: what `fit` finds (no margin, default margin), what the peers find on the same
step under the same ceiling, the true largest batch (the largest that survives 3 of 3 fresh
processes), and whether the found sizes survive whole epochs. `python -m benchmarks.fit [WORKLOAD
...]` runs some of them and keeps the others' results.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rightbatch as rb
from benchmarks._record import RESULTS, about, save
from benchmarks.workloads import NAMES, factory

LIMIT = 2 * 2**30
FRESH, EPOCHS = 3, 10
TIMEOUT = 900.0
RESOLUTION = 0.01
"""The bisection for the true largest ends when its bounds are this close."""
LEAST_STEPS, LEAST_EPOCHS = 6, 2
"""What a size must survive to count: what malloc holds still grows after the first steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("workloads", nargs="*", default=list(NAMES), metavar="WORKLOAD")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="whole epochs per found size")
    arguments = parser.parse_args()
    stored = RESULTS / "fit.json"
    results: dict[str, Any] = json.loads(stored.read_text())["results"] if stored.exists() else {}
    for name in arguments.workloads:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, Path(folder), arguments.epochs)
        save("fit", {"limit_bytes": LIMIT, "results": results}, table(results))


def measure(name: str, scratch: Path, epochs: int) -> dict[str, Any]:
    """Everything about one workload; raw samples included."""
    subject = factory(name, scratch)
    say(name, "measuring")
    result: dict[str, Any] = {"about": about()}
    result["no_margin"] = found(subject, margin=0.0)
    say(name, f"no margin: {result['no_margin']['batch_size']}")
    result["lightning_binsearch"] = peer(subject, scratch, "lightning", mode="binsearch")
    result["lightning_power"] = peer(subject, scratch, "lightning", mode="power")
    result["accelerate"] = peer(subject, scratch, "accelerate")
    say(name, *(f"{k}: {result[k].get('batch_size')}" for k in PEERS))
    result["default_margin"] = found(subject, margin=0.05)
    say(name, f"default margin: {result['default_margin']['batch_size']}")
    examples = result["no_margin"]["fit"]["examples"]
    start = result["no_margin"]["batch_size"]
    result["true_largest"] = true_largest(subject, scratch, start, examples)
    say(name, f"true largest: {result['true_largest']['batch_size']}")
    for which in ("no_margin", "default_margin"):
        size = result[which]["batch_size"]
        runs = [
            job(subject, scratch, "epochs", epochs=1, batch_size=size, seed=seed)
            for seed in range(epochs)
        ]
        result[which]["epochs"] = runs
        say(name, f"{which}: {_survived(result[which])} epochs")
    return result


PEERS = ("lightning_power", "lightning_binsearch", "accelerate")


def found(subject: Any, *, margin: float) -> dict[str, Any]:
    """What `fit` says, and how long the whole call took."""
    started = time.perf_counter()
    fitted = rb.fit(subject, memory=LIMIT, margin=margin, device="cpu", progress=False)
    seconds = time.perf_counter() - started
    document = fitted.to_dict()
    return {
        "batch_size": fitted.batch_size,
        "seconds": seconds,
        "processes": len({probe.process for probe in fitted.probes}),
        "fit": document,
    }


def peer(subject: Any, scratch: Path, kind: str, **more: Any) -> dict[str, Any]:
    """A peer's search; how many steps it tried is in `trials`."""
    return job(subject, scratch, kind, seed=0, **more)


def true_largest(subject: Any, scratch: Path, start: int, examples: int) -> dict[str, Any]:
    """Bisection over sizes that survive all of `FRESH` fresh processes, to within 1%.

    Each process trains whole epochs, two and six steps at least.
    """
    tried: dict[int, list[str]] = {}
    decisive: list[float] = []

    def survives(size: int) -> bool:
        if size not in tried:
            tried[size] = []
            for seed in range(FRESH):
                epochs = max(LEAST_EPOCHS, -(-LEAST_STEPS * size // examples))
                more = {"epochs": epochs, "batch_size": size, "seed": seed}
                run = job(subject, scratch, "epochs", **more)
                tried[size].append(run["outcome"])
                if run["outcome"] != "ok":
                    break
                decisive.append(run["wall_seconds"])
        return tried[size] == ["ok"] * FRESH

    low, high = start, None
    stride = max(1, round(0.03 * start))
    while not survives(low):
        high, low = low, max(low - stride, 1)
        stride *= 2
    while high is None:
        if survives(low + stride):
            low += stride
            stride *= 2
        else:
            high = low + stride
    while high - low > max(1, RESOLUTION * low):
        middle = (low + high) // 2
        low, high = (middle, high) if survives(middle) else (low, middle)
    return {"batch_size": low, "fails_at": high, "tried": tried, "decisive_seconds": decisive}


def job(subject: Any, scratch: Path, kind: str, **more: Any) -> dict[str, Any]:
    """Run one job of `benchmarks._in_process`; adds its `wall_seconds`."""
    order = {"factory": subject, "kind": kind, "limit": LIMIT, "scratch": str(scratch)} | more
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._in_process"],
            input=pickle.dumps(order),
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env=os.environ | {"TMPDIR": str(scratch)},
        )
    except subprocess.TimeoutExpired:
        return {"outcome": "timeout", "wall_seconds": TIMEOUT}
    wall = time.perf_counter() - started
    try:
        answer: dict[str, Any] = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (ValueError, IndexError):
        answer = {"outcome": "killed", "error": done.stderr.decode(errors="replace")[-2000:]}
    return answer | {"wall_seconds": wall}


def table(results: dict[str, Any]) -> str:
    """Compare what was found with the true largest size, one workload in a row."""
    columns = (
        "workload",
        "true largest",
        "`fit --margin 0`",
        "epochs survived",
        "`fit`",
        "epochs survived",
        "processes",
        "seconds",
        "÷ Lightning binsearch",
        "÷ decisive probe",
        "Lightning power",
        "Lightning binsearch",
        "Accelerate",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, r in results.items():
        true = r["true_largest"]["batch_size"]
        decisive = sorted(r["true_largest"]["decisive_seconds"])
        one_probe = decisive[len(decisive) // 2]
        bare, margin = r["no_margin"], r["default_margin"]
        cells = [
            name,
            str(true),
            _ratio(bare, true),
            _survived(bare),
            _ratio(margin, true),
            _survived(margin),
            f"{bare['processes']}, {margin['processes']}",
            f"{bare['seconds']:.0f}, {margin['seconds']:.0f}",
            _times(bare["seconds"], r.get("lightning_binsearch", {}).get("wall_seconds")),
            f"{bare['seconds'] / one_probe:.1f}",
            *(_peer(r.get(peer), true) for peer in PEERS),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ratio(one: dict[str, Any], true: int) -> str:
    return f"{one['batch_size']} ({one['batch_size'] / true:.2f})"


def _survived(one: dict[str, Any]) -> str:
    if not one.get("epochs"):
        return "not run"
    whole = [run for run in one["epochs"] if run["outcome"] == "ok"]
    return f"{len(whole)} of {len(one['epochs'])}"


def _times(seconds: float, other: float | None) -> str:
    return f"{seconds / other:.2f}" if other else "not run"


def _peer(one: dict[str, Any] | None, true: int) -> str:
    if one is None:
        return "not run"
    if one["outcome"] != "ok":
        return f"{one['outcome'].replace('_', ' ')}, {one['wall_seconds']:.0f} s"
    return f"{one['batch_size']} ({one['batch_size'] / true:.2f}), {one['wall_seconds']:.0f} s"


def say(name: str, *words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {name}: {', '.join(words)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
