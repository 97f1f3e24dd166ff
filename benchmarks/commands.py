"""The verbs for commands: on the scripts of tests/commands/gallery, and on public ones.

Each script runs alone, then under `rightbatch run`: losses and weights must be equal bit for bit.
Then `fit` answers under a memory limit, `tune` chooses among small sizes, and `study` trains a few
steps of two sizes. `--only NAME,...` measures some scripts, `--verbs fit,tune` some verbs; what is
stored of the others is kept. `--max-batch` ends `fit` early. With `--scripts DIR` the scripts are
public ones in that folder (`benchmarks.commands_public`), unmodified.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import commands_public
from benchmarks._record import RESULTS, about, save
from benchmarks.commands_headroom import compare
from benchmarks.commands_public import PublicScript

GALLERY = Path(__file__).parents[1] / "tests" / "commands" / "gallery"
BATCH = "8"
MEMORY = "600MiB"
RUN = ["--memory", MEMORY]
HEADROOM_STEPS = "14"
VERBS = {
    "fit": ["--memory", MEMORY],
    "tune": ["--budget", "20s", "--max-batch", "8", "--base-batch", "8"],
    "study": ["--batches", "4,8", "--seeds", "1", "--steps", "4", "--rule", "none"],
}
_ROW = re.compile(r"\| `([^`]+)` \| `([^`]+)` \|")
_RESULT_LINES = ("loss ", "weights ")


def _result_lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(_RESULT_LINES)]


@dataclass(frozen=True)
class Place:
    """The folder in which commands run, their environment, and what of their output is compared."""

    folder: Path = GALLERY
    variables: Mapping[str, str] = field(default_factory=dict)
    results: Callable[[str], list[str]] = _result_lines

    def run(self, command: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
        """Run a command; return how it ended, and its seconds."""
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            env=os.environ | {"PYTHON": sys.executable, **self.variables},
        )
        return done, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="scripts, separated by commas")
    every = ",".join(["run", "headroom", *VERBS])
    parser.add_argument("--verbs", default=every, help="verbs to measure")
    parser.add_argument("--scripts", type=Path, help="a folder with public scripts")
    parser.add_argument("--max-batch", help="the largest batch that `fit` tries, to save time")
    arguments = parser.parse_args()
    if arguments.max_batch is not None:
        VERBS["fit"] += ["--max-batch", arguments.max_batch]
    verbs, wanted = arguments.verbs.split(","), set(filter(None, arguments.only.split(",")))
    before: dict[str, Any] = {}
    if (RESULTS / "commands.json").exists():
        before = json.loads((RESULTS / "commands.json").read_text())
    if arguments.scripts is not None:
        measure_public(arguments.scripts, verbs, wanted, before)
        return
    scripts = before.get("scripts", {})
    stored = {command: scripts[command] for command in commands() if command in scripts}
    for command in commands():
        if not wanted or wanted & {Path(word).name for word in command.split()}:
            found = stored.setdefault(command, {})
            measure(command, verbs, Place(), found)
            document = {"scripts": stored, "public": before.get("public", {})}
            save("commands", document, row(command, found))  # after each


def measure_public(
    folder: Path, verbs: list[str], wanted: set[str], before: dict[str, Any]
) -> None:
    """Measure the public scripts in a folder, and store each; `wanted` are parts of names."""
    stored: dict[str, Any] = before.setdefault("public", {})
    for script, path in commands_public.found_in(folder):
        if wanted and not any(each in script.name for each in wanted):
            continue
        if missing := script.missing_packages():
            print(f"{script.name}: skipped, without {', '.join(missing)}")
            continue
        found = stored.setdefault(script.name, {})
        with tempfile.TemporaryDirectory() as temporary:
            command, place = prepare(script, path, Path(temporary))
            measure(command, verbs, place, found)
        found |= {
            "command": f"python {Path(script.file).name} {script.arguments}",
            "blob": commands_public.blob_of(path),
            "about": about(),
        }
        document = {key: before[key] for key in ("scripts", "public") if key in before}
        save("commands", document, row(script.name, found))


def prepare(script: PublicScript, path: Path, temporary: Path) -> tuple[str, Place]:
    """Make a script's data; return its command, and where it runs."""
    data, work = temporary / "data", temporary / "work"
    data.mkdir()
    work.mkdir()
    script.make_data(data)
    command = f"python {shlex.quote(str(path.resolve()))} {script.arguments}"
    folder = path.resolve().parent if script.runs_in_its_folder else work
    variables = commands_public.variables(script, temporary)
    place = Place(folder, variables, lambda output: re.findall(script.losses, output))
    return command.replace("{data}", str(data)), place


def commands() -> list[str]:
    """The command lines of the gallery's scripts that train."""
    text = (GALLERY / "README.md").read_text(encoding="utf-8")
    return [command for _, command in _ROW.findall(text.partition("The following do not")[0])]


def measure(command: str, verbs: list[str], place: Place, found: dict[str, Any]) -> None:
    """Put what the verbs answer for a command into `found`."""
    for verb in verbs:
        if verb == "run":
            found |= watch(command, place)
        elif verb == "headroom":
            found["headroom"] = headroom(command, place)
        elif verb == "fit" and "--max-batch" in VERBS["fit"] and compare(found).is_comparable:
            # A capped search would replace the answer that memory gave, with which the headroom is
            # compared, by one that tests nothing.
            print(f"{command}: the stored answer of fit is kept, since memory limited it")
        else:
            found[verb] = answer(verb, command, place)


def watch(command: str, place: Place) -> dict[str, Any]:
    """Run one command alone, and watched."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        outputs = [out / "alone", out / "watched"]  # a second run may find what the first has kept
        filled = []
        for output in outputs:
            output.mkdir(parents=True)
            filled.append(shlex.split(_fill(command, output)))
        report_file = Path(folder) / "report.json"
        alone, seconds = place.run(filled[0])
        options = [*RUN, "--report", str(report_file)]
        watched, watched_seconds = place.run([*_RIGHTBATCH, "run", *options, "--", *filled[1]])
        report = json.loads(report_file.read_text()) if report_file.exists() else {}
    return {
        "exit_codes": [alone.returncode, watched.returncode],
        "seconds": [seconds, watched_seconds],
        "results": [place.results(_own_output(done)) for done in (alone, watched)],
        "report": {key: value for key, value in report.items() if key != "losses"},
    }


def headroom(command: str, place: Place) -> dict[str, Any]:
    """Return what `run` says would fit, from a few steps."""
    with tempfile.TemporaryDirectory() as folder:
        report_file = Path(folder) / "report.json"
        options = [*RUN, "--steps", HEADROOM_STEPS, "--report", str(report_file)]
        filled = shlex.split(_fill(command, Path(folder)))
        place.run([*_RIGHTBATCH, "run", *options, "--", *filled])
        report = json.loads(report_file.read_text()) if report_file.exists() else {}
    kept = ("largest_batch_size", "batch_size", "peak_bytes", "limit_bytes", "steps")
    return {key: report[key] for key in kept if key in report}


def _own_output(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in lines if not line.startswith("rightbatch: "))


def _fill(command: str, out: Path) -> str:
    return command.replace("{batch}", BATCH).replace("{out}", str(out))


def answer(verb: str, command: str, place: Place) -> dict[str, Any]:
    """Return what a verb answers for one command, or why it does not."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*VERBS[verb], *(["--out", folder] if verb == "study" else [])]
        done, seconds = place.run(
            [*_RIGHTBATCH, verb, "--json", *options, "--", *shlex.split(command)]
        )
    found = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    kept = ("batch_size", "argument", "peak_bytes", "noise_scale", "command", "reason", "notes")
    short = {key: found[key] for key in kept if key in found}
    if "runs" in found:
        kept = ("batch_size", "status", "steps", "examples")
        short["runs"] = [{key: run[key] for key in kept} for run in found["runs"]]
    begin = done.stderr.rfind("rightbatch: ")  # a command's own output may follow
    message = done.stderr[begin:][:500] if begin >= 0 else done.stderr[-500:]
    return {
        "options": VERBS[verb],
        "exit_code": done.returncode,
        "seconds": seconds,
        "answer": short,
        "message": message if done.returncode else "",
    }


_RIGHTBATCH = [sys.executable, "-m", "rightbatch"]


def is_same(found: dict[str, Any]) -> bool:
    """Whether the script printed the same loss and weights alone and watched."""
    alone, watched = found["results"]
    return bool(alone) and alone == watched


def table(scripts: dict[str, Any]) -> str:
    """A row for each script."""
    head = (
        "| command | bit for bit | seen in a step | noise scale | headroom | `fit` | `tune` "
        "| `study` |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(row(command, found) for command, found in scripts.items())


def row(command: str, found: dict[str, Any]) -> str:
    """What the verbs answered for one script."""
    report = found.get("report", {})
    if not found.get("exit_codes"):
        same = "not run"
    elif any(found["exit_codes"]):
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
    headroom = compare(found).cell
    return f"| `{_short(command)}` | {same} | {parts} | {scale} | {headroom} | {answers} |\n"


def _short(command: str) -> str:
    return command if len(command) < 60 else command[:57] + "…"


def name_of(command: str) -> str:
    """Name a script in a sentence: its file, with its launcher."""
    words = command.split()
    file = next((word for word in words if word.endswith((".py", ".sh"))), None)
    return command if file is None or "," in command else f"{words[0]} {file}"


def is_refused(found: dict[str, Any]) -> bool:
    """Whether a verb refused a command with a reason of its own, as wrong use."""
    return found["exit_code"] == 2 and _refusal(found) is not None


def _refusal(found: dict[str, Any]) -> str | None:
    said = re.search(r"rightbatch: (.*?)[.;:(]", found["message"] + ".")
    return said[1] if said else None


def _answer(verb: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run"
    answer = found["answer"]
    if runs := answer.get("runs"):
        ends = sorted({run["status"] for run in runs})
        return f"{', '.join(ends)} in {found['seconds']:.0f} s"
    if answer.get("batch_size") is None:
        return f"exit {found['exit_code']}: {_refusal(found) or ''}"
    bound = answer.get("reason", "").partition("; it is ")[2].partition(",")[0]
    note = {"max_batch": ", the largest allowed", "the data set's size": ", the data set"}
    return f"{answer['batch_size']}{note.get(bound, '')} in {found['seconds']:.0f} s"


if __name__ == "__main__":
    main()
