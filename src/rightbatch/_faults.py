"""Fault injection: named places where memory can run out, so that tests can make it happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

Place = Literal["forward", "backward", "synchronization", "optimizer", "evaluation", "hook"]
PLACES: tuple[Place, ...] = get_args(Place)

watchers: list[Callable[[Place], None]] = []
"""Callbacks that `enter` calls with the place; a test injects a fault by raising in one."""


def enter(place: Place) -> None:
    """Call the watchers: the code of `place` starts now."""
    for watcher in watchers:
        watcher(place)
