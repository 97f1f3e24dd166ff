"""Changes of the micro-batch and failures survived, as records and as log lines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rightbatch._faults import Place

logger = logging.getLogger("rightbatch")

Kind = Literal["found", "out_of_memory", "shrunk", "grown", "rolled_back", "inexact", "adapted"]


@dataclass(frozen=True)
class Event:
    """One change of the micro-batch, or one failure survived, with its reason.

    `step` counts updates from 0, `place` is where memory ran out, `micro_batch_size` the size used
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
        """Return the fields for JSON."""
        return asdict(self)


def log_event(event: Event) -> None:
    """Log an event: failures and inexact gradients as warnings, other events as information."""
    is_failure = event.kind in ("out_of_memory", "rolled_back", "inexact")
    logger.log(logging.WARNING if is_failure else logging.INFO, "%s", event)


class EventLog:
    """Counts events by kind, keeps those since `clear`, and passes each to `on_event`."""

    def __init__(self, on_event: Callable[[Event], object]) -> None:
        self._on_event = on_event
        self.events: list[Event] = []
        self.counts: dict[Kind, int] = {}

    def add(self, event: Event) -> None:
        """Count, keep and pass on an event."""
        self.counts[event.kind] = self.counts.get(event.kind, 0) + 1
        self.events.append(event)
        self._on_event(event)

    def clear(self) -> None:
        """Discard the kept events, not the counts."""
        self.events = []
