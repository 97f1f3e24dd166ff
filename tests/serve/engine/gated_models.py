"""A model that answers once a test lets it, what keeps it busy, and a listener to its batches."""

from __future__ import annotations

import threading
from concurrent.futures import Future

from films import PATIENCE

LONG = 1000.0  # seconds: a target that no machine is too slow for


class Gated:
    """A model that answers once it is let, and remembers its batches."""

    def __init__(self, think=lambda item: ("result", item), most=None):
        self.batches = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self._think, self._most = think, most

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.release()
        assert self.go.wait(PATIENCE)
        if self._most is not None and len(items) > self._most:
            raise MemoryError
        return [self._think(item) for item in items]

    @property
    def items(self):
        return [item for batch in self.batches for item in batch]


def busy(batcher, model, stream="busy"):
    """Gives the model something to do, and returns once it does it."""
    future = batcher.submit("busy", stream=stream)
    assert model.entered.acquire(timeout=PATIENCE)
    return future


def outcome(future: Future):
    error = future.exception(PATIENCE)
    return error if error is not None else future.result()


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self):
        self.records, self.drops = [], []

    def batch(self, record):
        self.records.append(record)

    def dropped(self, stream, cause):
        self.drops.append((stream, cause))
