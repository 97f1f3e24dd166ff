"""What the driver says of the GPU, by NVIDIA's library where it is installed, else `nvidia-smi`.

It says so without opening a context, whose memory would be among what is measured.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "total": "memory.total",
    "used": "memory.used",
    "free": "memory.free",
    "watts": "power.draw",
}


def ask() -> dict[str, Any]:
    """`name`, `driver`, `total`, `used`, `free` (bytes), `watts`; {} where nobody can be asked."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS.values())}"]
    command += ["--format=csv,noheader,nounits", "-i", which()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parsed(done.stdout)


def parsed(line: str) -> dict[str, Any]:
    """A line of `nvidia-smi`'s; memory there is in MiB, and `[N/A]` is what it does not know.

    >>> parsed("NVIDIA H100 80GB HBM3, 570.86, 81559, 4, 81075, 69.32")["free"]
    85013299200
    """
    values = [value.strip() for value in line.strip().splitlines()[0].split(",")]
    found: dict[str, Any] = dict(zip(_FIELDS, values, strict=True))
    for key in ("total", "used", "free", "watts"):
        try:
            number = float(found[key])
        except ValueError:
            found[key] = None
            continue
        found[key] = number if key == "watts" else int(number) * 2**20
    return found


def used_bytes() -> int | None:
    """Of all processes; by NVML, which takes a millisecond, where it can be had."""
    try:
        import pynvml

        pynvml.nvmlInit()
        name = which()
        if name.isdigit():
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name))
        else:
            handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except Exception:  # not installed, no driver, or another reason of the library's own
        used = ask().get("used")
        return used if used is None else int(used)


def which() -> str:
    """The index or UUID of the first GPU that CUDA shows to this process."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
