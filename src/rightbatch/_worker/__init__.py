"""A process of ours that runs something of the user's, and what both sides say to each other.

`child` starts one, `dialogue` asks it, `__main__` runs in it: an entry named by whoever started it,
so that nothing here knows any verb.
"""

from __future__ import annotations

from rightbatch._worker.dialogue import BuildError, Ready, Worker
from rightbatch._worker.failure import Failure, Outcome
from rightbatch._worker.wire import Header, header_for

__all__ = ["BuildError", "Failure", "Header", "Outcome", "Ready", "Worker", "header_for"]
