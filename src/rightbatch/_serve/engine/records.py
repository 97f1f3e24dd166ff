"""What the engine says about an item and about a batch; the words that all of `serve` shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

# What becomes of frames that cannot all be served:
#   every      none is lost; who brings them waits (files, folders)
#   freshest   the newest takes the place of the one that waits (cameras)
#   deadline   each waits until it would be late (requests)
Contract = Literal["every", "freshest", "deadline"]

REQUESTS = "http"
"""The stream in which requests wait; no source has this name."""

Cause = Literal["late", "replaced", "full", "refused", "failed", "closing"]


@dataclass(frozen=True, slots=True)
class Served:
    """What became of one item.

    `latency` is seconds from its arrival to its result, `reason` why its batch had its size.
    """

    result: Any
    batch_size: int
    latency: float
    in_time: bool
    reason: str


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch: when, how large, how long, why so.

    `at` is Unix time, `seconds` and `oldest` (the age of its oldest item when it started) are
    seconds, `ran_as` the size it was padded to, `waiting` the items left in the queues. `items` has
    the stream's name, the latency in seconds and whether it was in time.
    """

    at: float
    size: int
    ran_as: int
    seconds: float
    reason: str
    waiting: int
    oldest: float
    items: tuple[tuple[str, float, bool], ...]


class Listener(Protocol):
    """Who hears of every batch and every drop, on any thread, at times with the engine's lock held:
    quick, and asking the engine nothing."""

    def batch(self, record: BatchRecord) -> None: ...

    def dropped(self, stream: str, cause: Cause) -> None: ...
