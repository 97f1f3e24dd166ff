"""Choose the examples that need the most memory, for probes.

A batch of average texts or images needs less memory than the worst batch of an epoch, and a single
batch that does not fit ends a run. With `Workload.size`, the largest examples of the data set are
chosen; without it, the largest of those that can be looked at in a few seconds, by the bytes of
their collated tensors.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from torch.utils.data import IterableDataset

from rightbatch._device import is_out_of_memory
from rightbatch._errors import UsageError
from rightbatch._workload.batch import batch_bytes
from rightbatch._workload.item import item_bytes

SAMPLE = 256
"""Examples that are looked at without `size`, if `SAMPLE_SECONDS` allow it."""
SAMPLE_SECONDS = 10.0
"""Maximum seconds for the sample, because decoding an example can be slow."""
SCAN_SECONDS = {True: 4.0, False: 1.0}
"""Seconds within which all examples are looked at, if those of the sample differ, and if not."""
LAST_OF_FOUR = 3
"""Of four batches of `WorstExamples.sequence`, the epoch's smaller last batch, if it has one."""
_MOST = 2**18
"""Examples that are looked at at most: as many as the seconds allow at 15 microseconds each."""
_EMPTY = -1.0
"""The size of an item that is None, as data sets return it for a file that cannot be read."""


@dataclass(frozen=True)
class Seen:
    """How many of how many examples the largest ones were chosen from; None: unknown."""

    examples: int
    of: int | None
    differ: bool

    def note(self) -> str | None:
        """Return what the answer rests on, if that is not all examples."""
        if self.examples == self.of:
            return None
        what = "the largest were taken" if self.differ else "all of one size"
        if self.of is None:
            return f"rests on the first {self.examples:,} examples of a stream: {what}"
        return (
            f"rests on {self.examples:,} of {self.of:,} examples: {what}; with size=, a function "
            "of the index, in the Workload the largest of all are taken"
        )


class WorstExamples:
    """Batches of the largest examples of a data set, and of random ones.

    `drawn` are the indices of the examples that are trained on, if not all are.

    Raises:
        UsageError: if the data set is empty, or map-style without `len`.
    """

    def __init__(
        self,
        data: Any,
        collate: Callable[[list[Any]], Any],
        size: Callable[[int], int] | None,
        seed: int,
        drawn: Sequence[int] | None = None,
    ) -> None:
        self.total = _length(data) if drawn is None else len(drawn)
        if self.total == 0:
            raise UsageError("the data set is empty; pass data with at least one example")
        self.data = data
        self._random = random.Random(seed)
        if isinstance(data, IterableDataset):
            # An IterableDataset has no indices: use a sample from its start instead.
            self.data, size = _first(data), None
            indices: Sequence[int] = range(len(self.data))
            if not indices:
                raise UsageError("the data set is empty; pass data with at least one example")
        elif self.total is None:
            raise UsageError(
                f"{type(data).__name__} has no len(); define __len__, or subclass IterableDataset "
                "for a stream"
            )
        else:
            indices = range(self.total) if drawn is None else drawn
        sizes = _sizes(self.data, indices, collate, size, seed)
        self._ordered = sorted(sizes, key=lambda index: (-sizes[index], index))
        self.sizes_differ = len({*sizes.values()} - {_EMPTY}) > 1
        self.seen = Seen(len(sizes), self.total, self.sizes_differ)
        self._indices = indices
        if _EMPTY in sizes.values():  # the collate leaves them out, and a batch of them is none
            self._indices = [i for i in indices if sizes.get(i) != _EMPTY] or indices

    def batch(self, indices: Sequence[int], collate: Callable[[list[Any]], Any]) -> Any:
        """Return the collated items of these indices."""
        return collate([self.data[index] for index in indices])

    @property
    def largest(self) -> Any:
        """The item that needs the most memory."""
        return self.data[self._ordered[0]]

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


def check_items(
    count: Callable[[Any], float], collate: Callable[[list[Any]], Any], item: Any
) -> None:
    """Check that the data's items, of which one is given, are examples.

    Raises:
        UsageError: if a batch of many items counts as many examples as a batch of one.
    """

    def counted(items: int) -> float:
        return float(count(collate([item] * items)))

    try:
        one = counted(1)
        # A batch may be padded to a multiple of 8 examples, but not to any number of them.
        is_constant = one > 1 and all(counted(items) == one for items in (2, 2 * int(one)))
    except Exception:
        return  # not every collate takes one item, and not every batch is counted
    if is_constant:
        raise UsageError(
            f"the collate makes a batch of {one:g} of one item as well as of several, so "
            "that the items are whole batches; pass data whose items are examples, or measure the "
            "script that trains: `rightbatch fit -- python train.py --batch-size {batch}`"
        )


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


def _first(data: Any) -> list[Any]:
    """Return the first items of a stream: `SAMPLE` of them, or those of `SAMPLE_SECONDS`."""
    items, started = [], time.monotonic()
    for item in islice(iter(data), SAMPLE):
        items.append(item)
        if time.monotonic() - started > SAMPLE_SECONDS:
            break
    return items


def _sizes(
    data: Any,
    indices: Sequence[int],
    collate: Callable[[list[Any]], Any],
    size: Callable[[int], int] | None,
    seed: int,
) -> dict[int, float]:
    """Return the sizes of all examples, or of those that can be looked at in the time, by index."""
    if size is not None:
        return {index: float(size(index)) for index in indices}
    sizes: dict[int, float] = {}
    found: set[float] = set()
    started = time.monotonic()
    for index in random.Random(seed).sample(indices, min(len(indices), _MOST)):
        sizes[index] = _size(data[index], collate)
        found.add(sizes[index])
        seconds = time.monotonic() - started
        is_sampled = len(sizes) >= SAMPLE
        if seconds > (SCAN_SECONDS[len(found) > 1] if is_sampled else SAMPLE_SECONDS):
            break
    return sizes


def _size(item: Any, collate: Callable[[list[Any]], Any]) -> float:
    """Return the bytes of an example as the collate returns it alone, else of the item itself.

    Some collates take no item alone: pairs, items that are None and left out.
    """
    if item is None:
        return _EMPTY
    try:
        collated = batch_bytes(collate([item]))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        collated = 0
    return float(collated or item_bytes(item))
