"""`run` and `fit` on the scripts of tests/commands/gallery, as their README lists them.

Each script runs alone, then under `rightbatch run`: losses and weights must be equal bit for bit.
Then `rightbatch fit` answers under a memory limit. `--only NAME,...` measures some scripts, and
keeps what is stored of the others; `--no-fit` leaves `fit` out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS, save

GALLERY = Path(__file__).parents[1] / "tests" / "commands" / "gallery"
MEMORY, MAX_BATCH, BATCH = "600MiB", "64", "8"
_ROW = re.compile(r"\| `([^`]+)` \| `([^`]+)` \|")
_RESULT_LINES = ("loss ", "weights ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="scripts, separated by commas")
    parser.add_argument("--no-fit", action="store_true", help="measure `run` only")
    arguments = parser.parse_args()
    stored: dict[str, Any] = {}
    if arguments.only and (RESULTS / "commands.json").exists():
        stored = json.loads((RESULTS / "commands.json").read_text())["scripts"]
    wanted = set(filter(None, arguments.only.split(",")))
    for command in commands():
        if not wanted or wanted & {Path(word).name for word in command.split()}:
            stored[command] = measure(command, with_fit=not arguments.no_fit)
            save("commands", {"scripts": stored}, row(command, stored[command]))  # after each


def commands() -> list[str]:
    """The command lines of the gallery's scripts that train."""
    text = (GALLERY / "README.md").read_text(encoding="utf-8")
    return [command for _, command in _ROW.findall(text.partition("The following do not")[0])]


def measure(command: str, *, with_fit: bool) -> dict[str, Any]:
    """Run one command alone, watched, and under `fit`."""
    with tempfile.TemporaryDirectory() as folder:
        filled = command.replace("{batch}", BATCH).replace("{out}", folder).split()
        report_file = Path(folder) / "report.json"
        alone, seconds = _run(filled)
        watched, watched_seconds = _run(
            [*_RIGHTBATCH, "run", "--report", str(report_file), "--", *filled]
        )
        report = json.loads(report_file.read_text()) if report_file.exists() else {}
    found = {
        "exit_codes": [alone.returncode, watched.returncode],
        "seconds": [seconds, watched_seconds],
        "results": [_results(alone.stdout), _results(watched.stdout)],
        "report": {key: value for key, value in report.items() if key != "losses"},
    }
    if with_fit:
        asked = ["fit", "--json", "--memory", MEMORY, "--max-batch", MAX_BATCH, "--"]
        fitted, fit_seconds = _run([*_RIGHTBATCH, *asked, *command.split()])
        answer = json.loads(fitted.stdout) if fitted.stdout.startswith("{") else {}
        answer.pop("probes", None)
        found["fit"] = {
            "exit_code": fitted.returncode,
            "seconds": fit_seconds,
            "answer": answer,
            "message": "" if answer else fitted.stderr[-500:],
        }
    return found


_RIGHTBATCH = [sys.executable, "-m", "rightbatch"]


def _run(command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=GALLERY,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env=os.environ | {"PYTHON": sys.executable},
    )
    return done, time.perf_counter() - started


def _results(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(_RESULT_LINES)]


def is_same(found: dict[str, Any]) -> bool:
    """Whether the script printed the same loss and weights alone and watched."""
    alone, watched = found["results"]
    return bool(alone) and alone == watched


def table(scripts: dict[str, Any]) -> str:
    """A row for each script."""
    head = (
        "| command | bit for bit | seen in a step | noise scale | `fit` |\n|---|---|---|---|---|\n"
    )
    return head + "".join(row(command, found) for command, found in scripts.items())


def row(command: str, found: dict[str, Any]) -> str:
    report = found["report"]
    if any(found["exit_codes"]):
        same = "the script failed alone, too" if found["exit_codes"][0] else "failed"
    else:
        same = "equal" if is_same(found) else "**differs**"
    parts = f"{report.get('batch_size')} examples"
    if (report.get("micro_batches") or 1) > 1:
        parts += f" in {report['micro_batches']} parts"
    if report.get("ranks", 1) > 1:
        parts += f" on {report['ranks']} ranks"
    noise = report.get("noise_scale")
    if noise is None:
        scale = f"unknown: {report.get('noise_reason', '')}"
    elif noise["value"] is None:
        scale = f"above {noise['low']:.3g}"
    else:
        scale = f"{noise['value']:.3g} ({noise['low']:.3g} to {noise['high']:.3g})"
    return f"| `{_short(command)}` | {same} | {parts} | {scale} | {_fit(found.get('fit'))} |\n"


def _short(command: str) -> str:
    return command if len(command) < 60 else command[:57] + "…"


def _fit(found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run"
    answer = found["answer"]
    if answer.get("batch_size") is None:
        return f"exit {found['exit_code']}"
    return f"{answer['batch_size']} in {found['seconds']:.0f} s"


if __name__ == "__main__":
    main()
