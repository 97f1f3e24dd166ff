"""`tune` against trainings at every size: is its choice as fast as the best of the grid?

`python -m benchmarks.tune [PART ...]` runs `curves` (long; resumes), `choice` and `growth`, or
those named, and keeps the others' results.
"""

from __future__ import annotations

from benchmarks._record import run_parts
from benchmarks.tune.choice import choice, growth
from benchmarks.tune.curves import curves
from benchmarks.tune.table import table

PARTS = {"curves": curves, "choice": choice, "growth": growth}

if __name__ == "__main__":
    run_parts("tune", PARTS, table, __doc__)
