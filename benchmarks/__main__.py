"""`python -m benchmarks [NAME ...]`: run all benchmarks, or those named.

`gpu` is not among all: it needs an NVIDIA GPU (`python -m benchmarks.gpu`, docs/gpu-run.md).
"""

from __future__ import annotations

import subprocess
import sys

ALL = (
    "startup",
    "fit",
    "commands",
    "agent",
    "predict",
    "noise",
    "elastic",
    "tune",
    "serve",
    "study",
)
NEEDS_GPU = ("gpu",)


def main() -> int:
    names = sys.argv[1:] or list(ALL)
    known = (*ALL, *NEEDS_GPU)
    if unknown := set(names) - set(known):
        print(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}", file=sys.stderr)
        return 2
    return max(
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
