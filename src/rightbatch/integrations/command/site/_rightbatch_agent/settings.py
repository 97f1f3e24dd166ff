"""What the parent wants of the agent."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple, Optional

VARIABLE = "RIGHTBATCH_AGENT"


class Settings(NamedTuple):
    """Settings of one run of a command.

    `address` is the path of a Unix socket, or `[host, port]`. In a `trial`, a process ends with its
    parent, gets at most `memory` bytes (on the CPU at most `free`, shared with the other ranks of
    this machine), and must not overwrite files that are older than `started_at` (seconds since the
    epoch) outside of `folders`. It blocks after `steps` steps, if there are any; with
    `until_evaluation` not before an evaluation and one more step. Outside of a trial a process ends
    with its parent only if `ends_with_parent`. `noise` is the share of the time
    that gradients may be looked at, 0 for never. `batch` is the size that was asked for: an input
    that has it as its second dimension only begins with time. `made` is a JSON file with what
    earlier trials have made, which may be overwritten.
    """

    address: Any
    secret: str
    trial: bool
    steps: int = 0
    memory: Optional[int] = None
    free: Optional[int] = None
    margin: float = 0.0
    until_evaluation: bool = False
    started_at: float = 0.0
    ends_with_parent: bool = False
    noise: float = 0.01
    batch: Optional[int] = None
    folders: tuple = ()  # type: ignore[type-arg]
    made: Optional[str] = None

    @classmethod
    def from_environment(cls) -> Settings | None:
        """Return the settings of this process; None if it is not part of a command."""
        text = os.environ.get(VARIABLE)
        return cls(**json.loads(text)) if text else None
