"""`Elastic`: what it costs, how exact it is, and what a failure costs beside what peers do.

`python -m benchmarks.elastic [PART ...]` runs some of its parts and keeps the others' results.
"""

from __future__ import annotations

from benchmarks._record import run_parts
from benchmarks.elastic.exactness import exactness
from benchmarks.elastic.lost import lost
from benchmarks.elastic.overhead import overhead
from benchmarks.elastic.overlap import overlap
from benchmarks.elastic.peers import peers
from benchmarks.elastic.processes import processes
from benchmarks.elastic.table import table

PARTS = {
    "exactness": exactness,
    "processes": processes,
    "overlap": overlap,
    "peers": peers,
    "overhead": overhead,
    "lost": lost,
}

if __name__ == "__main__":
    run_parts("elastic", PARTS, table, __doc__)
