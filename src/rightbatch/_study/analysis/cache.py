"""Caches what is computed from a run that has ended, which no longer changes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

from rightbatch._study.records import Run, Target

_Answer = TypeVar("_Answer")
_OfRun = Callable[[Run, Target | None], _Answer]


def once_per_run(function: _OfRun[_Answer]) -> _OfRun[_Answer]:
    """Cache a function of a run and a target for runs that have ended, while the object lives.

    The key is the object itself: its curves may not have been read yet, and another store may use
    the same id.
    """
    known: dict[int, tuple[weakref.ref[Run], dict[Target | None, _Answer]]] = {}

    @functools.wraps(function)
    def cached(run: Run, target: Target | None) -> _Answer:
        if run.status == "running":
            return function(run, target)
        key = id(run)
        entry = known.get(key)
        if entry is None or entry[0]() is not run:
            entry = known[key] = weakref.ref(run, lambda _: known.pop(key, None)), {}
        answers = entry[1]
        if target not in answers:
            answers[target] = function(run, target)
        return answers[target]

    return cached
