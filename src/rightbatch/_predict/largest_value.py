"""The largest value of a parameter, such as a length or an image's side, at which a batch fits."""

from __future__ import annotations

from collections.abc import Callable

MULTIPLE = 32
"""Of which the answer is one: strides of detectors, patches and tiles of matrix products are."""
MOST = 2**20
FINE = 0.02
"""The answer's distance from a value that does not fit, as a share, if `MULTIPLE` is finer."""
_FARTHEST = 4
"""Times the largest value tried that the next one may be."""
_SAME = 4
"""Values, each larger than the one before, of which two must differ in what they need."""


class NoEffectError(Exception):
    """The memory is the same at every value."""


def largest_with_room(room: Callable[[int], int], start: int) -> int:
    """Return a multiple of `MULTIPLE` up to `MOST` that has room, or 0 if there is none.

    `room(value)` is the bytes that are left at a value, negative if it does not fit, and falls with
    the value; it takes seconds. A value larger than the answer by `FINE` or `MULTIPLE` has no room.
    The search follows the line through two values, first through the last ones, then through those
    on either side of the edge, and every third time takes the middle.

    Raises:
        NoEffectError: if several values have as much room.
    """
    known: dict[int, int] = {}
    fits, fails = 0, MOST // MULTIPLE + 1
    following = min(max(start // MULTIPLE, 1), fails - 1)
    while True:
        known[following] = room(following * MULTIPLE)
        if known[following] >= 0:
            fits = following
        else:
            fails = following
        if len(known) == _SAME and len(set(known.values())) == 1:
            raise NoEffectError
        if fails - fits <= _step(fits):
            return fits * MULTIPLE
        following = _following(known, fits, fails)


def _step(fits: int) -> int:
    return max(int(FINE * fits), 1)


def _following(known: dict[int, int], fits: int, fails: int) -> int:
    """Return a value between `fits` and `fails`, at least a step from both where there is room."""
    if fails not in known:
        before = max((value for value in known if value < fits), default=None)
        farthest = _FARTHEST * fits
        reached = 2 * fits if before is None else _root(known, before, fits, farthest)
        return int(min(max(reached, fits + _step(fits)), farthest, fails - 1))
    reached = (fits + fails) / 2 if fits else fails / _FARTHEST
    if len(known) % 3 and fits:
        reached = _root(known, fits, fails, fails)
    nearest = fits + _step(fits)
    return int(min(max(reached, nearest), max(fails - _step(fits), nearest)))


def _root(known: dict[int, int], low: int, high: int, otherwise: int) -> float:
    """Return where the line through two values has no room; `otherwise` if it does not fall."""
    fall = known[low] - known[high]
    return low + known[low] * (high - low) / fall if fall > 0 else otherwise
