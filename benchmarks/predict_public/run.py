"""Go through the rows, one fork of this process per step; what is there already is kept.

`python -m benchmarks.predict public --data FOLDER` resumes; `--only infer` or `--only train/vit`
takes the rows whose names begin so, `--again` predicts them again, `--minutes` ends in time.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._record import RESULTS, about, say
from benchmarks.predict_public.measure import predictions
from benchmarks.predict_public.rows import Row, grouped, read

STORED = RESULTS / "predict_public.jsonl"
LIMIT_SECONDS = 240
"""Seconds for one step, all GPUs together; the time limit is a result."""


def main(arguments: list[str]) -> None:
    """Run the command line `arguments`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predict public", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the measurements")
    parser.add_argument("--only", default="", help="the beginning of the rows' names")
    parser.add_argument("--again", action="store_true", help="predict stored rows again")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no row after these")
    parser.add_argument("--rows", type=int, default=10**6, help="rows at most, with stored ones")
    parser.add_argument("--out", type=Path, default=STORED)
    options = parser.parse_args(arguments)
    ends = time.monotonic() + 60 * options.minutes
    importlib.import_module("timm")  # once, not in every fork
    torch.set_num_threads(1)
    kept = stored(options.out)
    seen = 0
    for rows in grouped(read(options.data)):
        if not rows[0].key.startswith(options.only):
            continue
        if seen >= options.rows or time.monotonic() > ends:
            break
        seen += len(rows)
        if not options.again and all(row.key in kept for row in rows):
            continue
        started = time.perf_counter()
        found = predicted(rows)
        seconds = time.perf_counter() - started
        versions = about()["versions"]
        with options.out.open("a") as file:
            for row, result in zip(rows, found, strict=True):
                line = as_line(row) | result | {"step_seconds": round(seconds, 1)}
                line |= {"torch": versions["torch"], "date": about()["date"]}
                file.write(json.dumps(line) + "\n")
                said = result.get("largest", result.get("error", "")[:150])
                say(f"{row.key}: {said} of [{row.ran}, {row.failed}), {seconds:.0f} s")


def stored(path: Path) -> dict[str, dict[str, Any]]:
    """Return the stored results by row; the last one counts."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text().splitlines())
    return {line["key"]: line for line in lines}


def predicted(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the result of each row, predicted in a fork; or why there is none."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _predict_in_fork(rows, writer)
    os.close(writer)
    ends = time.monotonic() + LIMIT_SECONDS
    output = b""
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while select.select([stream], [], [], max(ends - time.monotonic(), 0.0))[0]:
            part = stream.read(2**16)
            if not part:
                break
            output += part
        else:
            output = b""
            os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    if output:
        found: list[dict[str, Any]] = json.loads(output)
        return [one | {"peak_mib": round(usage.ru_maxrss / 1024)} for one in found]
    if time.monotonic() >= ends:
        return [{"error": f"not predicted in {LIMIT_SECONDS} seconds"}] * len(rows)
    code = os.waitstatus_to_exitcode(status)
    return [{"error": f"the process ended with exit code {code}"}] * len(rows)


def _predict_in_fork(rows: list[Row], writer: int) -> None:
    """Write the results as JSON and exit; never returns."""
    try:
        os.setsid()  # its own forks are ended with it
        try:
            found = predictions(rows)
        except Exception as error:
            failed = {"error": f"{type(error).__name__}: {error}"[:2000]}
            found = [failed] * len(rows)
        with os.fdopen(writer, "wb") as stream:
            stream.write(json.dumps(found).encode())
    finally:
        os._exit(0)


def as_line(row: Row) -> dict[str, Any]:
    """Return the fields of a row that are stored."""
    fields = dataclasses.asdict(row)
    del fields["more"]
    return {"key": row.key, "half": row.half} | fields
