"""Measures, where a GPU is, what a process takes of it beside its tensors; and keeps that.

The figures depend on the architecture, the driver and torch's version, so that is what they are
kept by, in the user's cache folder. `outside` prefers them to its table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rightbatch._errors import UsageError, WorkloadError
from rightbatch._units import format_bytes

_MEASURE = (sys.executable, "-P", "-m", "rightbatch._predict.calibration_process")


@dataclass(frozen=True)
class Calibration:
    """Bytes of one process on `gpu`: its context, bare and with many kernels loaded, and cuBLAS's
    workspace of one thread. `capability` is the GPU's, `torch` the version's first two numbers."""

    gpu: str
    capability: float
    torch: str
    context_low_bytes: int
    context_high_bytes: int
    cublas_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.gpu}, torch {self.torch}: context {format_bytes(self.context_low_bytes)} to "
            f"{format_bytes(self.context_high_bytes)}, cuBLAS workspace "
            f"{format_bytes(self.cublas_bytes)} per thread"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `rightbatch predict --calibrate --json`."""
        return asdict(self)


def calibrate(command: Sequence[str] = _MEASURE) -> Calibration:
    """Measure the GPU that is here, and keep the figures for `predict`.

    A context's size is what the free memory loses when a second process opens one: the first one's
    cannot be told from other programs'. `command` starts such a process.

    Raises:
        UsageError: if there is no CUDA GPU.
        WorkloadError: if the measuring itself fails.
    """
    with _process(command) as first, _process(command) as second:
        about = _answer(first, "who")
        if about.get("gpu") is None:
            raise UsageError(
                "--calibrate measures the CUDA GPU of this machine, and there is none; run it "
                f"where the GPU is (its figures are kept in {_file()})"
            )
        alone = _answer(first, "free")
        bare = _answer(second, "free")  # its first touch of the GPU
        loaded = _answer(second, "load")
    found = Calibration(
        gpu=about["gpu"],
        capability=about["capability"],
        torch=_torch(),
        context_low_bytes=alone["free"] - bare["free"],
        context_high_bytes=alone["free"] - loaded["free"] - loaded["reserved"],
        cublas_bytes=loaded["cublas"],
    )
    kept = _stored()
    kept[_key(found.capability)] = found.to_dict()
    _file().parent.mkdir(parents=True, exist_ok=True)
    _file().write_text(json.dumps(kept, indent=1))
    return found


def calibrated(capability: float) -> Calibration | None:
    """What was measured on a GPU of this compute capability with this version of torch."""
    fields = _stored().get(_key(capability))
    return Calibration(**fields) if fields else None


def _process(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _answer(process: subprocess.Popen[str], question: str) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        process.stdin.write(question + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if line:
        answer: dict[str, Any] = json.loads(line)
        return answer
    text = process.stderr.read()
    raise WorkloadError(
        f"the GPU could not be measured: {text.strip().splitlines()[-1:] or 'no message'}",
        error_type="CalibrationFailed",
        error_message=text[-2000:],
        traceback=text,
    )


def _key(capability: float) -> str:
    return f"capability {capability}, torch {_torch()}"


def _torch() -> str:
    return ".".join(version("torch").split(".")[:2])


def _stored() -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(_file().read_text())
        return kept
    except (OSError, ValueError):
        return {}


def _file() -> Path:
    if sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "rightbatch" / "calibrations.json"
