"""Out-of-memory errors for tests: injected at a named place, or by a limit of the process."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from rightbatch import _faults
from rightbatch._device.proc import private_bytes
from rightbatch._errors import UsageError
from rightbatch._faults import PLACES, Place
from rightbatch._units import parse_bytes


@dataclass
class Injected:
    """The number of entries of the place inside the context, and the entries that failed."""

    entries: int = 0
    failed: list[int] = field(default_factory=list)


@contextmanager
def inject_out_of_memory(at: Place, when: int | Collection[int] = 0) -> Iterator[Injected]:
    """Make the `when`-th entries of a place inside the context raise an out-of-memory error.

    `at` is `forward` or `backward` of a part, `synchronization` (the reduction over processes),
    `optimizer` (fails halfway through an update, after its first parameters have changed),
    `evaluation` of a part, or `hook` (`before_update` with clipping). Entries are counted from 0;
    retries count as entries.

    Raises:
        UsageError: for an unknown place.
    """
    if at not in PLACES:
        raise UsageError(f"at is one of {', '.join(PLACES)}, not {at!r}")
    fails = {when} if isinstance(when, int) else set(when)
    injected = Injected()

    def watch(place: Place) -> None:
        if place != at:
            return
        entry = injected.entries
        injected.entries += 1
        if entry in fails:
            injected.failed.append(entry)
            raise torch.OutOfMemoryError(f"out of memory, injected at {at} {entry}")

    _faults.watchers.append(watch)
    try:
        yield injected
    finally:
        _faults.watchers.remove(watch)


@contextmanager
def limited_memory(more: int | str) -> Iterator[None]:
    """Limit this process to `more` private bytes beyond its current ones.

    The operating system enforces the limit, so that allocations really fail. Linux only.

    Raises:
        UsageError: on other systems.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError(
            "limited_memory needs Linux: other systems do not enforce a limit on a process"
        )
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + parse_bytes(more), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
