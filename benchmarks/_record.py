"""Where and with what a benchmark ran; unlike runs are never compared silently."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "rightbatch",
    "torch",
    "torchvision",
    "timm",
    "monai",
    "transformers",
    "ultralytics",
    "lightning",
    "accelerate",
    "av",
    "onnxruntime",
    "ray",
)


def about() -> dict[str, Any]:
    """Machine, versions and date."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": psutil.virtual_memory().total,
            "system": f"{platform.system()} {platform.release()}",
            "libc": "-".join(platform.libc_ver()),
            "python": platform.python_version(),
        },
        "versions": versions,
    }


def save(name: str, document: dict[str, Any], table: str) -> None:
    """Write `results/NAME.json`, and print the table that `benchmarks.page` makes of it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(about() | document, indent=1) + "\n")
    print(table)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")


def run_parts(
    name: str,
    parts: Mapping[str, Callable[[], Any]],
    table: Callable[[dict[str, Any]], str],
    description: str | None,
) -> None:
    """The command line of a benchmark of several parts: those named are run, the others' results
    kept. A part is stored as soon as it has ended, as `{"about": ..., "found": ...}`."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", default=list(parts), metavar="PART")
    asked = parser.parse_args().parts
    if unknown := set(asked) - set(parts):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    path = RESULTS / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text())["results"] if path.exists() else {}
    for part in asked:
        results[part] = {"about": about(), "found": parts[part]()}
        save(name, {"results": results}, table(results))


def interval(found: dict[str, float]) -> str:
    """`median`, `low` and `high` as a cell of a table."""
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
