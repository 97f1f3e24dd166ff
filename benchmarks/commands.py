"""The verbs for commands on the scripts of tests/commands/gallery, as their README lists them.

Each script runs alone, then under `rightbatch run`: losses and weights must be equal bit for bit.
Then `fit` answers under a memory limit, `tune` chooses among small sizes, and `study` trains a few
steps of two sizes. `--only NAME,...` measures some scripts, `--verbs fit,tune` some verbs; what is
stored of the others is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._record import RESULTS, save

GALLERY = Path(__file__).parents[1] / "tests" / "commands" / "gallery"
BATCH = "8"
VERBS = {
    "fit": ["--memory", "600MiB", "--max-batch", "64"],
    "tune": ["--budget", "20s", "--max-batch", "8", "--base-batch", "8"],
    "study": ["--batches", "4,8", "--seeds", "1", "--steps", "4", "--rule", "none"],
}
_ROW = re.compile(r"\| `([^`]+)` \| `([^`]+)` \|")
_RESULT_LINES = ("loss ", "weights ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="scripts, separated by commas")
    parser.add_argument("--verbs", default=",".join(["run", *VERBS]), help="verbs to measure")
    arguments = parser.parse_args()
    before: dict[str, Any] = {}
    if (RESULTS / "commands.json").exists():
        before = json.loads((RESULTS / "commands.json").read_text())["scripts"]
    stored = {command: before[command] for command in commands() if command in before}
    wanted = set(filter(None, arguments.only.split(",")))
    for command in commands():
        if not wanted or wanted & {Path(word).name for word in command.split()}:
            found = stored.setdefault(command, {})
            for verb in arguments.verbs.split(","):
                found |= watch(command) if verb == "run" else {verb: answer(verb, command)}
            save("commands", {"scripts": stored}, row(command, found))  # after each


def commands() -> list[str]:
    """The command lines of the gallery's scripts that train."""
    text = (GALLERY / "README.md").read_text(encoding="utf-8")
    return [command for _, command in _ROW.findall(text.partition("The following do not")[0])]


def watch(command: str) -> dict[str, Any]:
    """Run one command alone, and watched."""
    with tempfile.TemporaryDirectory() as folder:
        filled = command.replace("{batch}", BATCH).replace("{out}", folder).split()
        report_file = Path(folder) / "report.json"
        alone, seconds = _run(filled)
        watched, watched_seconds = _run(
            [*_RIGHTBATCH, "run", "--report", str(report_file), "--", *filled]
        )
        report = json.loads(report_file.read_text()) if report_file.exists() else {}
    return {
        "exit_codes": [alone.returncode, watched.returncode],
        "seconds": [seconds, watched_seconds],
        "results": [_results(alone.stdout), _results(watched.stdout)],
        "report": {key: value for key, value in report.items() if key != "losses"},
    }


def answer(verb: str, command: str) -> dict[str, Any]:
    """Return what a verb answers for one command, or why it does not."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*VERBS[verb], *(["--out", folder] if verb == "study" else [])]
        done, seconds = _run([*_RIGHTBATCH, verb, "--json", *options, "--", *shlex.split(command)])
    found = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    kept = ("batch_size", "argument", "peak_bytes", "noise_scale", "command", "reason", "notes")
    short = {key: found[key] for key in kept if key in found}
    if "runs" in found:
        kept = ("batch_size", "status", "steps", "examples")
        short["runs"] = [{key: run[key] for key in kept} for run in found["runs"]]
    message = "" if done.returncode == 0 else done.stderr[-500:]
    return {"exit_code": done.returncode, "seconds": seconds, "answer": short, "message": message}


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
        "| command | bit for bit | seen in a step | noise scale | `fit` | `tune` | `study` |\n"
        "|---|---|---|---|---|---|---|\n"
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
    answers = " | ".join(_answer(verb, found.get(verb)) for verb in VERBS)
    return f"| `{_short(command)}` | {same} | {parts} | {scale} | {answers} |\n"


def _short(command: str) -> str:
    return command if len(command) < 60 else command[:57] + "…"


def _answer(verb: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run"
    answer = found["answer"]
    if runs := answer.get("runs"):
        ends = sorted({run["status"] for run in runs})
        return f"{', '.join(ends)} in {found['seconds']:.0f} s"
    if answer.get("batch_size") is None:
        said = re.search(r"rightbatch: (.*?)[.;:(]", found["message"] + ".")
        return f"exit {found['exit_code']}: {said[1] if said else ''}"
    return f"{answer['batch_size']} in {found['seconds']:.0f} s"


if __name__ == "__main__":
    main()
