"""What is computed of a run that ended is computed once, since it changes no more."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

from rightbatch._study.records import Run, Target

_Answer = TypeVar("_Answer")
_OfRun = Callable[[Run, Target | None], _Answer]


def once_per_run(function: _OfRun[_Answer]) -> _OfRun[_Answer]:
    """Keep the answers by target for a run that ended, as long as that very object lives.

    Neither its curves, which may not have been read yet, nor its id, which another store may have
    given as well, are looked at.
    """
    known: dict[int, tuple[weakref.ref[Run], dict[Target | None, _Answer]]] = {}

    @functools.wraps(function)
    def remembering(run: Run, target: Target | None) -> _Answer:
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

    return remembering
