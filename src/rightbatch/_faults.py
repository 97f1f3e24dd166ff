"""Places where memory may run out, by name, so that a test can make it run out there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

Place = Literal["forward", "backward", "synchronization", "optimizer", "evaluation", "hook"]
PLACES: tuple[Place, ...] = get_args(Place)

watchers: list[Callable[[Place], None]] = []
"""Called with every place that is entered; one that raises is the fault."""


def enter(place: Place) -> None:
    """Say that the code of `place` begins."""
    for watcher in watchers:
        watcher(place)
