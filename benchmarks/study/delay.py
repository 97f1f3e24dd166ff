"""How soon a page shows what a study measures: from a point's own time to the chart that has it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._record import say
from benchmarks.study.browser import chromium, noted, opened, wait_for_curves
from benchmarks.study.processes import RIGHTBATCH, page_of, started
from benchmarks.study.stored import Kept, runs_of, wait_for_a_run
from benchmarks.study.workload import CONVOLUTION

METRIC = "loss"  # every point has it
LAST = 4.0  # seconds for the page after the study's end, and more than it takes to ask again


def delay(batches: Sequence[int], epochs: int) -> dict[str, Any]:
    """Of every point that was measured while the page was open.

    One seed a size, so that the end of a size's curve is its run's last point. Between two runs the
    next one's process starts, so that its first points tell whether the page still asks.
    """
    with tempfile.TemporaryDirectory(prefix="rightbatch-") as folder:
        out = Path(folder) / "study"
        told = [*RIGHTBATCH, "study", CONVOLUTION, "--out", str(out), "--epochs", str(epochs)]
        told += ["--batches", ",".join(map(str, batches)), "--seeds", "1", "--rule", "none"]
        with started(told) as study:
            wait_for_a_run(out, study)
            with page_of(out) as served, chromium() as browser:
                drawn = _watched(browser, served.url, study)
        runs = runs_of(out)
    points = [point for run in runs for point in _shown(run, drawn)]
    unseen = [point for point in points if point["delay"] is None]
    say(f"{len(points)} points were measured while the page was open, {len(unseen)} never shown")
    return {
        "batches": list(batches),
        "epochs": epochs,
        "redrawn": len(drawn),
        "never_shown": len(unseen),
        "points": points,
    }


def _watched(browser: Any, url: str, study: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Each drawing of the main chart: when, and where the curve of each size ended."""
    page = opened(browser)
    page.goto(f"{url}/#metric={METRIC}", wait_until="commit")
    wait_for_curves(page)
    say("the page is open")
    while study.poll() is None:
        page.wait_for_timeout(500)
    page.wait_for_timeout(1000 * LAST)
    return [one for one in noted(page)["drawn"] if one["chart"] == "curve"]


def _shown(run: Kept, drawn: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """When each point of a run was seen first, in seconds after it was measured."""
    opened_at = drawn[0]["wall"]
    ends = [(one["wall"], dict(one["ends"]).get(f"batch {run.batch_size}", -1)) for one in drawn]
    found = []
    for step, stamp, _ in run.history(METRIC):
        if stamp < opened_at:
            continue
        seen = min((wall for wall, last in ends if last >= step), default=None)
        found.append(
            {
                "batch_size": run.batch_size,
                "step": step,
                "at": stamp / 1000,
                "delay": None if seen is None else (seen - stamp) / 1000,
            }
        )
    return found
