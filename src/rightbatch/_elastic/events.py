"""What happened to the micro-batch, as records and as lines in the log."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rightbatch._faults import Place

logger = logging.getLogger("rightbatch")

Kind = Literal["found", "out_of_memory", "shrunk", "grown", "rolled_back", "inexact", "adapted"]


@dataclass(frozen=True)
class Event:
    """One change, or one failure that was survived, with its reason.

    `step` counts updates from 0, `place` is where memory ran out, `micro_batch_size` what is tried
    next. `adapted` is a change of the batch size itself, which only `train --adapt` makes.
    """

    kind: Kind
    step: int
    reason: str
    micro_batch_size: int
    place: Place | None = None

    def __str__(self) -> str:
        return f"step {self.step}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def tell(event: Event) -> None:
    """One line in the log: a warning where something was lost, else for information."""
    is_loss = event.kind in ("out_of_memory", "rolled_back", "inexact")
    logger.log(logging.WARNING if is_loss else logging.INFO, "%s", event)
