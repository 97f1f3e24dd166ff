"""`python -m benchmarks.study [NAME ...] [--quick]`: all about studies, or the parts named.

Together they take about an hour, of a machine that does nothing else.
"""

from __future__ import annotations

import subprocess
import sys

PARTS = ("shipped", "page", "live", "killed")


def main() -> int:
    options = [word for word in sys.argv[1:] if word == "--quick"]
    names = [word for word in sys.argv[1:] if word not in options] or list(PARTS)
    if unknown := set(names) - set(PARTS):
        print(f"unknown: {', '.join(unknown)}; known are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    return max(
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.study.{name}", *options], check=False
        ).returncode
        for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
