"""Write docs/benchmarks.md from benchmarks/results, or check that it is up to date.

`python -m benchmarks.page [--check] [--results FOLDER] [--page FILE]`.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from benchmarks._record import RESULTS
from benchmarks.page.document import render

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.page", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=PAGE, help="the file to write or to check")
    asked = parser.parse_args(arguments)
    wanted = render(asked.results)
    if not asked.check:
        asked.page.write_text(wanted, encoding="utf-8")
        return 0
    found = asked.page.read_text(encoding="utf-8") if asked.page.exists() else ""
    if found == wanted:
        return 0
    sys.stderr.writelines(
        difflib.unified_diff(
            found.splitlines(keepends=True),
            wanted.splitlines(keepends=True),
            str(asked.page),
            f"made of {asked.results}",
        )
    )
    print(f"{asked.page} is not up to date: run python -m benchmarks.page", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
