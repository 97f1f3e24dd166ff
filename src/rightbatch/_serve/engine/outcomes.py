"""Tell the caller of an item, and all listeners, what became of the item."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from rightbatch._errors import LateError
from rightbatch._serve.engine.queues import Item
from rightbatch._serve.engine.records import BatchRecord, Cause, Listener, Served

_LOG = logging.getLogger("rightbatch")
_CAUSES = {
    "late": "it would have been late in the batch that started",
    "refused": "it is predicted to be late, given the items that wait",
    "replaced": "a newer item replaced it",
    "full": "its queue was full",
    "closing": "the server is closing",
}


def late_error(cause: Cause, retry_after: float = 0.0) -> LateError:
    """Return the error of an item that was not served."""
    return LateError(_CAUSES[cause], cause=cause, retry_after=retry_after)


class Outcomes:
    """Notifies callers and listeners; an exception in one of them is logged and does not spread.

    Args:
        latency: the target in seconds, after which a dropped request may be repeated.
        listeners: notified of every batch and every drop.
    """

    def __init__(self, latency: float, listeners: Sequence[Listener]) -> None:
        self._latency = latency
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        """Notify one more listener."""
        self._listeners.append(listener)

    def batch(self, record: BatchRecord) -> None:
        """Report a batch that ran."""
        for listener in self._listeners:
            _call_safely(listener.batch, record)

    def refused(self, stream: str, cause: Cause, retry_after: float = 0.0) -> LateError:
        """Report an item that was not queued; return the error for its caller."""
        self._dropped(stream, cause)
        return late_error(cause, retry_after)

    def dropped(self, item: Item, cause: Cause) -> None:
        """Report an item that was dropped from its queue."""
        retry_after = self._latency if cause == "late" else 0.0
        self.tell(item, self.refused(item.stream, cause, retry_after))

    def failed(self, item: Item, error: BaseException) -> None:
        """Report an item for which the function raised `error`."""
        self._dropped(item.stream, "failed")
        self.tell(item, error)

    def tell(self, item: Item, outcome: Served | BaseException) -> None:
        """Call the item's callback."""
        if item.done is not None:
            _call_safely(item.done, outcome)

    def _dropped(self, stream: str, cause: Cause) -> None:
        for listener in self._listeners:
            _call_safely(listener.dropped, stream, cause)


def _call_safely(callback: Callable[..., object], *arguments: object) -> None:
    try:
        callback(*arguments)
    except Exception:
        _LOG.exception("a listener or an item's callback failed")
