"""One part in its process: `python -m benchmarks.gpu.child MODULE --rows FILE ...`."""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Report, missing_of

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "ultralytics", "monai", "nvidia-ml-py")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--requires", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    deadline = time.monotonic() + asked.seconds
    report = Report(asked.rows, asked.files, asked.device, asked.tiny, deadline)
    missing = missing_of(tuple(asked.requires.split(",")))
    report.about(**_about(asked.device, "torch" not in missing))
    if missing:
        report.skip("everything", f"not installed: {', '.join(missing)}")
        return
    import_module(asked.module).run(report)


def _about(device: str, has_torch: bool) -> dict[str, Any]:
    """The GPU's name, versions and date; unlike runs are never compared silently."""
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if device == "cpu":
        facts["gpu"] = "cpu"
    elif has_torch:
        import torch

        facts["gpu"] = torch.cuda.get_device_name()
    return facts


if __name__ == "__main__":
    main()
