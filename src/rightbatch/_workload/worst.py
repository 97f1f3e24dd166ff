"""Choose the examples that need the most memory, for probes.

A batch of average texts or images needs less memory than the worst batch of an epoch, and a single
batch that does not fit ends a run. With `Workload.size`, the largest examples of the data set are
chosen; without it, the largest of a sample, by the bytes of their collated tensors.
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
"""Examples in the sample that is measured without `size`."""
SAMPLE_SECONDS = 10.0
"""Maximum seconds for the sample, because decoding an example can be slow."""


class WorstExamples:
    """Batches of the largest examples of a data set, and of random ones.

    Raises:
        UsageError: if the data set is empty, or map-style without `len`.
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
            raise UsageError("the data set is empty; pass data with at least one example")
        self.data = data
        if isinstance(data, IterableDataset):
            # An IterableDataset has no indices: use a sample from its start instead.
            self.data, size = list(islice(iter(data), SAMPLE)), None
            indices = range(len(self.data))
            if not indices:
                raise UsageError("the data set is empty; pass data with at least one example")
        elif self.total is None:
            raise UsageError(
                f"{type(data).__name__} has no len(); define __len__, or subclass IterableDataset "
                "for a stream"
            )
        else:
            indices = range(self.total)
        self._indices = indices
        self._random = random.Random(seed)
        self._ordered, sizes = _by_size(self.data, indices, collate, size, seed)
        self.sizes_differ = min(sizes) != max(sizes)

    def worst(self, batch_size: int) -> list[int]:
        """Return the indices of the batch that needs the most memory.

        In a sample of n of N examples, the largest n·B/N represent the largest B of all.
        """
        sampled, total = len(self._ordered), self.total or batch_size * len(self._ordered)
        top = max(1, min(sampled, -(-sampled * batch_size // total)))
        return list(islice(cycle(self._ordered[:top]), batch_size))

    def typical(self, batch_size: int) -> list[int]:
        """Return random indices, as a shuffled epoch draws them; new ones with every call."""
        drawn = self._random.sample(self._indices, min(batch_size, len(self._indices)))
        return list(islice(cycle(drawn), batch_size))

    def sequence(self, batch_size: int, *, drop_last: bool = True) -> Iterator[list[int]]:
        """Iterate over the batches that stress an allocator: worst, typical, last, full again.

        The last batch of an epoch is smaller, unless it is dropped. If examples differ in size, no
        two batches have the same shapes, and a caching allocator holds more with each of them.
        """
        rest = 0 if drop_last else smaller_last_batch(self.total, batch_size)
        while True:
            yield self.worst(batch_size)
            yield self.typical(batch_size) if self.sizes_differ else self.worst(batch_size)
            if rest:
                yield self.typical(rest)
            # The next full batch shows the fragmentation that the smaller one caused.
            yield self.typical(batch_size) if self.sizes_differ else self.worst(batch_size)


def smaller_last_batch(examples: int | None, batch_size: int) -> int:
    """Return the number of examples in an epoch's last batch if it is smaller, else 0.

    A last batch of one example counts as 0: it does not matter for memory, and BatchNorm cannot
    train on it.

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
    """Return the indices, largest example first, and the sizes."""
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
