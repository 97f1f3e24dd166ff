"""How many examples loaders return, and how long the training waits for them."""

from __future__ import annotations

import functools
import time
from collections import deque
from typing import Any, Callable
from weakref import WeakKeyDictionary


class Loaders:
    """Observes every `torch.utils.data.DataLoader` of this process.

    Calls `returned(examples, seconds, length, iterator)` after each batch: its examples and the
    length of the data set, each None if it is unknown.
    """

    def __init__(
        self, torch: Any, returned: Callable[[int | None, float, int | None, Any], None]
    ) -> None:
        sizes: WeakKeyDictionary[Any, deque[int]] = WeakKeyDictionary()
        iterator = torch.utils.data.dataloader._BaseDataLoaderIter
        next_index, next_batch = iterator._next_index, iterator.__next__
        reset = iterator._reset

        @functools.wraps(next_index)
        def next_index_and_count(self_: Any) -> Any:
            index = next_index(self_)
            # Else the loader does not form batches, or an iterable data set decides how many.
            if isinstance(index, (list, tuple)) and None not in index:
                sizes.setdefault(self_, deque()).append(len(index))
            return index

        @functools.wraps(next_batch)
        def next_batch_and_time(self_: Any) -> Any:
            started_at = time.perf_counter()
            batch = next_batch(self_)
            seconds = time.perf_counter() - started_at
            waiting = sizes.get(self_)
            count = waiting.popleft() if waiting else leading_size(batch)
            returned(count, seconds, _length(self_), self_)
            return batch

        @functools.wraps(reset)
        def reset_and_forget(self_: Any, *arguments: Any, **keywords: Any) -> Any:
            sizes.pop(self_, None)  # a new epoch of persistent workers
            return reset(self_, *arguments, **keywords)

        next_batch_and_time._torchdynamo_disable = True  # type: ignore[attr-defined]
        iterator._next_index, iterator.__next__ = next_index_and_count, next_batch_and_time
        iterator._reset = reset_and_forget


def leading_size(batch: Any, asked: int | None = None) -> int | None:
    """Return the first dimension of the first tensor in a batch; None if there is none.

    It is the second one where only that has the size that was `asked` for: time may come first.
    """
    if getattr(batch, "shape", None) is not None:
        shape = shape_of(batch)
        if not shape:
            return None
        is_text = len(shape) in (2, 3)  # (time, batch), with features or without
        if is_text and asked is not None and shape[0] != asked == shape[1]:
            return asked
        return int(shape[0])
    if isinstance(batch, dict) or hasattr(batch, "items"):
        batch = list(dict(batch.items()).values())
    if isinstance(batch, (list, tuple)):
        for part in batch:
            found = leading_size(part, asked)
            if found is not None:
                return found
    return None


def shape_of(tensor: Any) -> tuple[Any, ...] | None:
    """Return the shape of a tensor; None where it has none, or one of symbols.

    `torch.fx` and `torch.export` call modules with proxies, whose sizes must not be asked for.
    """
    shape = getattr(tensor, "shape", None)
    if not isinstance(shape, tuple) or any(type(size) is not int for size in shape[:2]):
        return None
    return shape


def _length(iterator: Any) -> int | None:
    try:
        return len(iterator._dataset)
    except (TypeError, AttributeError, NotImplementedError):
        return None  # an iterable data set
