"""The curves of a run, read when the first of them is used."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from rightbatch._study.records import Curve
from rightbatch._study.store.history import History

_NOTHING = np.empty(0)
EMPTY = Curve(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING)


class Curves(Mapping[str, Curve]):
    """A run's curves by metric. Safe to use from several threads.

    Args:
        names: of the metrics.
        axes: the metrics that tell where on the axes a step was.
        read: returns the histories of at least the metrics that it is given.
        make: makes a metric's curve from its own history and those of the axes.
    """

    def __init__(
        self,
        names: Sequence[str],
        axes: Sequence[str],
        read: Callable[[Sequence[str]], Mapping[str, History]],
        make: Callable[[str, Mapping[str, History]], Curve],
    ) -> None:
        self._names = dict.fromkeys(names)
        self._axes = axes
        self._read, self._make = read, make
        self._lock = threading.Lock()
        self._made: dict[str, Curve] = {}
        self._histories: dict[str, History] = {}

    def __getitem__(self, name: str) -> Curve:
        if name not in self._names:
            raise KeyError(name)
        with self._lock:
            if name not in self._made:
                self._load(name)
            return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Curves({', '.join(self._names)})"

    def _load(self, name: str) -> None:
        """Make every curve whose history comes with this one's."""
        missing = [one for one in (name, *self._axes) if one not in self._histories]
        self._histories |= self._read(missing)
        for each in self._names:
            if each in self._histories and each not in self._made:
                has_values = len(self._histories[each].steps)
                self._made[each] = self._make(each, self._histories) if has_values else EMPTY
        self._made.setdefault(name, EMPTY)
        if len(self._made) == len(self._names):
            self._histories.clear()
