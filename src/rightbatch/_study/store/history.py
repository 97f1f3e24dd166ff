"""The values of a run's metrics by step, as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rightbatch._study.store.run_record import LARGEST

Numbers = NDArray[np.float64]
Keep = Literal["first", "last"]
"""Which value of a step that was logged more than once."""


@dataclass(frozen=True)
class History:
    """A metric's values by step, each step once; `stamps` are milliseconds of Unix time."""

    steps: Numbers
    stamps: Numbers
    values: Numbers

    @classmethod
    def of(cls, numbers: Numbers, keep: Keep) -> History:
        """From the rows steps, stamps and values of `numbers`, in any order."""
        steps, stamps, values = numbers[:, np.lexsort((numbers[1], numbers[0]))]
        is_other = steps[1:] != steps[:-1]
        kept = np.append(is_other, True) if keep == "last" else np.insert(is_other, 0, True)
        kept = kept[: len(steps)]
        values = np.where(np.abs(values) >= LARGEST, np.copysign(np.inf, values), values)
        return cls(steps[kept], stamps[kept], values[kept])


def interpolate(histories: Mapping[str, History], name: str, steps: Numbers) -> Numbers:
    """A metric at these steps: linear between two of its own, NaN beyond them."""
    history = histories.get(name)
    if history is None or not len(history.steps):
        return np.full(len(steps), np.nan)
    if np.array_equal(history.steps, steps):
        return history.values
    return np.interp(steps, history.steps, history.values, left=np.nan, right=np.nan)
