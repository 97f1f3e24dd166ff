"""Which examples to measure with: the ones that need the most memory, not the first ones.

A batch of average texts or images says little about the worst batch of an epoch, and one bad batch
is enough to lose a run. Where `Workload.size` tells, the largest examples of all are taken; else a
sample of the data by the bytes of its collated examples.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

from torch.utils.data import IterableDataset

from rightbatch._errors import UsageError
from rightbatch._workload.batch import batch_bytes

SAMPLE = 256
"""Examples looked at where no `size` is given."""
SAMPLE_SECONDS = 10.0
"""And no longer than this, since decoding an example may take long."""


class WorstExamples:
    """Batches of the largest examples of a data set, and of ordinary ones.

    Raises:
        UsageError: if the data set is empty.
    """

    def __init__(
        self,
        data: Any,
        collate: Callable[[list[Any]], Any],
        size: Callable[[int], int] | None,
        seed: int,
    ) -> None:
        self.total = _length(data)
        if self.total == 0:
            raise UsageError("the data set is empty: there is nothing to run")
        self.data = data
        if isinstance(data, IterableDataset):
            # There are no indices to choose by: a sample from its beginning stands for it.
            self.data, size = list(islice(iter(data), SAMPLE)), None
            indices = range(len(self.data))
            if not indices:
                raise UsageError("the data set is empty: there is nothing to run")
        elif self.total is None:
            raise UsageError(
                f"{type(data).__name__} has no len(); a map-style Dataset has one, and data "
                "without an end is an IterableDataset"
            )
        else:
            indices = range(self.total)
        self._indices = indices
        self._random = random.Random(seed)
        self._ordered, sizes = _by_size(self.data, indices, collate, size, seed)
        self.differ = min(sizes) != max(sizes)

    def worst(self, batch_size: int) -> list[int]:
        """Indices of the batch that needs the most memory.

        In a sample of n out of N examples the largest n·B/N stand for the largest B of all.
        """
        seen, total = len(self._ordered), self.total or batch_size * len(self._ordered)
        top = max(1, min(seen, -(-seen * batch_size // total)))
        return list(islice(cycle(self._ordered[:top]), batch_size))

    def ordinary(self, batch_size: int) -> list[int]:
        """Indices drawn as a shuffled epoch draws them, anew with every call."""
        drawn = self._random.sample(self._indices, min(batch_size, len(self._indices)))
        return list(islice(cycle(drawn), batch_size))

    def sequence(self, batch_size: int, *, drop_last: bool = True) -> Iterator[list[int]]:
        """What an epoch holds for the allocator: the worst, others, its last batch, and again.

        The last one is smaller, unless it is dropped. Where examples differ no two batches have
        the same shapes, and an allocator that reuses freed blocks holds more with each of them.
        """
        rest = 0 if drop_last else smaller_last_batch(self.total, batch_size)
        while True:
            yield self.worst(batch_size)
            yield self.ordinary(batch_size) if self.differ else self.worst(batch_size)
            if rest:
                yield self.ordinary(rest)
            # What the smaller batch has broken up shows in the next one of full size.
            yield self.ordinary(batch_size) if self.differ else self.worst(batch_size)


def smaller_last_batch(examples: int | None, batch_size: int) -> int:
    """How many examples an epoch's last batch holds, if that is another size; else 0.

    One of a single example counts as none: that is no question of memory (BatchNorm refuses it).

    >>> smaller_last_batch(100, 30), smaller_last_batch(91, 30), smaller_last_batch(20, 30)
    (10, 0, 0)
    """
    rest = (examples or 0) % batch_size
    return rest if rest > 1 and (examples or 0) > batch_size else 0


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _by_size(
    data: Any,
    indices: Sequence[int],
    collate: Callable[[list[Any]], Any],
    size: Callable[[int], int] | None,
    seed: int,
) -> tuple[list[int], list[float]]:
    """Indices with the largest example first, and their sizes."""
    measure: Callable[[int], float]
    if size is not None:
        measure = size
    else:
        measure = lambda index: batch_bytes(collate([data[index]]))  # noqa: E731
        if len(indices) > SAMPLE:
            indices = random.Random(seed).sample(indices, SAMPLE)
    sizes: dict[int, float] = {}
    started = time.monotonic()
    for index in indices:
        sizes[index] = float(measure(index))
        if measure is not size and time.monotonic() - started > SAMPLE_SECONDS:
            break
    ordered = sorted(sizes, key=lambda index: -sizes[index])
    return ordered, list(sizes.values())
