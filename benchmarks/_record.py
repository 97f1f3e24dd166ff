"""Where and with what a benchmark ran; unlike runs are never compared silently."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
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
    """Write `results/NAME.json` and the table beside it."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(about() | document, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def median(values: list[float]) -> float:
    return statistics.median(values) if values else float("nan")
