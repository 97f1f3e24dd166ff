"""The shipped study as a person runs it: how long it takes, what it finds, and its report offline.

`python -m benchmarks.study.shipped [--repeats 3] [--quick] [--to FOLDER]`. Each time
`python -m rightbatch.examples.digits` is run into a fresh folder, and `rightbatch report` after it.
The report is opened as a file, in a chromium whose network is off.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks._record import say
from benchmarks.study.browser import chromium, noted, opened, settle, wait_for_curves
from benchmarks.study.part import Part, figures, plural, spread
from benchmarks.study.processes import RIGHTBATCH, environment
from rightbatch._study.analysis import document
from rightbatch._study.store.reader import Reader

SEEDS, QUICK_SEEDS = 3, 1
GOAL_MINUTES, GOAL_ERROR, GOAL_BYTES = 4.0, 0.10, 6_000_000
_INSIDE = ("data", "blob")  # where what is in the file itself is asked for


def main() -> None:
    part = Part("shipped", __doc__, repeats=3)
    repeats = 1 if part.quick else part.counts["repeats"]
    seeds = QUICK_SEEDS if part.quick else SEEDS
    found = []
    for number in range(repeats):
        with tempfile.TemporaryDirectory(prefix="rightbatch-") as folder:
            found.append(_study(Path(folder) / "digits", seeds))
        one = found[-1]
        say(f"{number + 1}: {one['seconds']:.0f} s, critical {one['critical']}")
    part.save({"studies": found}, table)


def _study(out: Path, seeds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "rightbatch.examples.digits", "--out", str(out)]
    began = time.perf_counter()
    # What it says of its progress goes on to this process's own stderr.
    done = subprocess.run(
        [*command, "--seeds", str(seeds)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    written = subprocess.run(
        [*RIGHTBATCH, "report", str(out), "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    report_seconds = time.perf_counter() - began
    report = Path(json.loads(written.stdout)["report"])
    with Reader(out) as reader:
        study = document.study(reader)
    critical = study["critical"]
    return {
        "seconds": seconds,
        "report_seconds": report_seconds,
        "said": done.stdout,
        "sentences": study["answer"]["sentences"],
        "critical": critical and {key: critical[key] for key in critical if key != "curve"},
        "critical_reason": study["critical_reason"],
        "sizes": study["sizes"],
        "runs": study["runs"],
        "report_bytes": report.stat().st_size,
        "offline": _offline(report, study["answer"]["sentences"]),
    }


def _offline(report: Path, sentences: list[str]) -> dict[str, Any]:
    """What a browser makes of the file, and all that it asks for and complains of."""
    requests: list[str] = []
    complaints: list[str] = []
    with chromium() as browser:
        page = opened(browser, offline=True)
        page.on("request", lambda request: requests.append(request.url[:200]))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda said: said.type in ("error", "warning") and complaints.append(said.text),
        )
        page.goto(report.as_uri(), wait_until="commit")
        wait_for_curves(page)
        settle(page)
        places = page.locator("#sentences li")
        shown = [
            places.nth(number).inner_text()
            for number in range(places.count())
            if places.nth(number).is_visible()
        ]
        seen = noted(page)
    own = report.as_uri()
    return {
        "shown": shown,
        "is_as_found": shown == sentences,
        "requests": [url for url in requests if url != own and urlsplit(url).scheme not in _INSIDE],
        "complaints": complaints,
        "seen_milliseconds": seen["seen"],
    }


def table(document: dict[str, Any]) -> str:
    """Show what the study answered, and the figures beside their goals."""
    found = document["studies"]
    seeds = len({run["seed"] for run in found[-1]["runs"]})
    sizes = len({run["batch_size"] for run in found[-1]["runs"]})
    introduction = (
        f"`python -m rightbatch.examples.digits`, {sizes} sizes × {plural(seeds, 'seed')}, run "
        f"{plural(len(found), 'time')}, each from an empty folder. The last answer:\n\n"
        + "\n".join(f"> {sentence}" for sentence in found[-1]["sentences"])
    )
    return figures(document, introduction, _rows(found))


def _rows(found: list[dict[str, Any]]) -> list[str]:
    minutes = [one["seconds"] / 60 for one in found]
    offline = [one["offline"] for one in found]
    good = sum(
        one["is_as_found"] and not one["requests"] and not one["complaints"] for one in offline
    )
    statuses = [run["status"] for one in found for run in one["runs"]]
    fitted = [one["critical"] for one in found if one["critical"]]
    errors = [100 * fit["rms_log_error"] for fit in fitted]
    rows = [
        f"| from the command to its answer | {spread(minutes, 'minutes')} | ≤ {GOAL_MINUTES:g} |",
        f"| runs that finished | {statuses.count('finished')} of {len(statuses)} | |",
        f"| studies that fitted a critical batch size | {len(fitted)} of {len(found)} | |",
    ]
    rows += [
        f"| critical batch size, 95% interval, rms log error | {fit['batch_size']:.0f} "
        f"({_end(fit['low'])} to {_end(fit['high'])}), {fit['rms_log_error']:.1%} | |"
        for fit in fitted
    ]
    sizes = [one["report_bytes"] / 1e6 for one in found]
    curves = [one["seen_milliseconds"]["curves"] / 1000 for one in offline]
    return [
        *rows,
        f"| rms log error of the fit | {spread(errors, '%')} | ≤ {GOAL_ERROR:.0%} |",
        f"| report file | {spread(sizes, 'MB')} | ≤ {GOAL_BYTES / 1e6:g} MB |",
        f"| writing the report | {spread([one['report_seconds'] for one in found])} | |",
        f"| reports that open with the network off: all sentences, no request, no error | "
        f"{good} of {len(found)} | all |",
        f"| from opening the report to its first curves | {spread(curves)} | |",
    ]


def _end(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
