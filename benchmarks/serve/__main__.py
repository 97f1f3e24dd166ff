"""`python -m benchmarks.serve [NAME ...]`: all about serving, or the parts that are named.

Together they take about two hours, of a machine that does nothing else.
"""

from __future__ import annotations

import subprocess
import sys

PARTS = ("virtual", "engine", "real_model", "faults", "hostile", "soak")


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    if unknown := set(names) - set(PARTS):
        print(f"unknown: {', '.join(unknown)}; known are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    return max(
        subprocess.run([sys.executable, "-m", f"benchmarks.serve.{name}"], check=False).returncode
        for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
