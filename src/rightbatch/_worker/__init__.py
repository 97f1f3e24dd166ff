"""Worker processes that run the user's code, and the messages between both sides.

`child` starts a process, `dialogue` sends commands and receives reports, `__main__` runs in it and
calls the entry that its header names. Nothing here depends on a verb.
"""

from __future__ import annotations

from rightbatch._worker.dialogue import BuildError, Ready, Worker
from rightbatch._worker.failure import Failure, Outcome
from rightbatch._worker.wire import Header, header_for

__all__ = ["BuildError", "Failure", "Header", "Outcome", "Ready", "Worker", "header_for"]
