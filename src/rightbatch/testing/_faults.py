"""Memory that runs out on purpose: at a named place, or at a real limit of the process."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from rightbatch import _faults
from rightbatch._device.cpu import private_bytes
from rightbatch._errors import UsageError
from rightbatch._faults import PLACES, Place
from rightbatch._units import parse_bytes


@dataclass
class Injected:
    """How often the place was entered inside the context, and which entries failed."""

    entries: int = 0
    failed: list[int] = field(default_factory=list)


@contextmanager
def inject_out_of_memory(at: Place, when: int | Collection[int] = 0) -> Iterator[Injected]:
    """Make the `when`-th entries of a place inside the context fail for want of memory.

    `at` is `forward`, `backward`, `synchronization`, `optimizer`, `evaluation` or `hook`: of a
    part, of the reduction over processes, of an update (which fails half way, when its first
    parameters are changed), of an evaluated part, and of `before_update` with clipping. Entries are
    counted from 0, and attempts that follow a failure enter again.

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
    """Let this process have no more than `more` private bytes beyond what it has now.

    The operating system enforces it, so that what fails inside fails for real. Linux only.

    Raises:
        UsageError: elsewhere.
    """
    if not sys.platform.startswith("linux"):
        raise UsageError("only Linux enforces a limit on the memory of a process")
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + parse_bytes(more), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
