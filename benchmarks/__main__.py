"""`python -m benchmarks [NAME ...]`: run all benchmarks, or those named."""

from __future__ import annotations

import subprocess
import sys

ALL = ("startup", "fit", "predict", "noise", "elastic", "tune", "serve", "study")


def main() -> int:
    names = sys.argv[1:] or list(ALL)
    if unknown := set(names) - set(ALL):
        print(f"unknown: {', '.join(unknown)}; known are {', '.join(ALL)}", file=sys.stderr)
        return 2
    return max(
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
