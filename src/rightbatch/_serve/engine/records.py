"""Types shared by all of `serve`: contracts, drop causes, results, batch records, listeners."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

# How a stream behaves when not every item can be served:
#   every      no item is lost; the producer blocks (files, folders)
#   freshest   a new item replaces the one that waits (cameras)
#   deadline   an item waits until it would be late (requests)
Contract = Literal["every", "freshest", "deadline"]

REQUESTS = "http"
"""The stream of HTTP requests; no source may have this name."""

Cause = Literal["late", "replaced", "full", "refused", "failed", "closing"]


@dataclass(frozen=True, slots=True)
class Served:
    """The result of one item.

    `latency` is the seconds from arrival to result, `reason` explains the size of the batch.
    """

    result: Any
    batch_size: int
    latency: float
    in_time: bool
    reason: str


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch: time, size, duration and reason.

    `at` is Unix time. `seconds` and `oldest` (age of the oldest item at the start) are seconds.
    `ran_as` is the size after padding, `waiting` the number of items left in the queues. `items`
    has the stream's name, the latency in seconds and whether the target was met.
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
    """Is notified of every batch and every drop.

    The methods are called on any thread, sometimes with the engine's lock held: they must return
    quickly and must not call the engine.
    """

    def batch(self, record: BatchRecord) -> None: ...

    def dropped(self, stream: str, cause: Cause) -> None: ...
