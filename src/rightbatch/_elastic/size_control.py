"""The micro-batch size in use, and the events that say when and why it changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rightbatch._elastic.events import Event, EventLog, Kind
from rightbatch._elastic.gradients import Accumulated, Failure, nothing_fits
from rightbatch._elastic.size_policy import MicroBatchSize
from rightbatch._errors import UsageError


class SizeControl:
    """Applies the policy of `MicroBatchSize`, counts the steps, and records every change.

    Args:
        given: the initial size, or `"auto"`: then there is none before `start`.
        least: the smallest size that the model takes, in examples.
        on_event: called with every `Event`.

    Raises:
        UsageError: if `given` is neither `"auto"` nor an integer of at least 1.
    """

    def __init__(self, given: int | str, least: int, on_event: Callable[[Event], object]) -> None:
        self.least = least
        self.steps = 0
        self._log = EventLog(on_event)
        self._given = given
        self._micro: MicroBatchSize | None = None
        if given != "auto":
            self.use(given)

    @property
    def size(self) -> int | None:
        """The size in use, in examples; None before `start`."""
        return self._micro.size if self._micro else None

    @property
    def multiple(self) -> int:
        """The number that the sizes are multiples of."""
        return self._micro.multiple if self._micro else 1

    @property
    def counts(self) -> dict[Kind, int]:
        """The number of events of each kind so far."""
        return self._log.counts

    @property
    def events(self) -> Sequence[Event]:
        """The events since `clear_events`."""
        return self._log.events

    def clear_events(self) -> None:
        """Discard the events, not their counts."""
        self._log.clear()

    def use(self, size: int | str) -> None:
        """Use parts of this size, or of `least` if that is larger.

        Raises:
            UsageError: if it is not an integer of at least 1.
        """
        if not isinstance(size, int) or size < 1:
            raise UsageError(f"micro_batch_size must be 'auto' or an integer >= 1, got {size!r}")
        size = max(size, self.least)
        self._micro = MicroBatchSize(size, size, self.least)

    def start(self, size: int, *, multiple: int = 1, reason: str = "") -> int:
        """Use the size that was measured, at least `multiple`, and return it.

        Without a `reason` no event is recorded.
        """
        least = max(self.least, multiple)
        size = max(size, least)
        self._micro = MicroBatchSize(size, size, least, multiple=multiple)
        if reason:
            self.record("found", reason)
        return size

    def on_failure(self, failure: Failure) -> int:
        """Return the size to try next, after memory ran out.

        Raises:
            NothingFitsError: if there is no smaller size.
        """
        assert self._micro is not None
        size = self._micro.size
        decision = self._micro.on_failure()
        if decision == "none":
            raise nothing_fits(failure, size)
        now = self._micro.size
        ran_out = f"memory ran out in {failure.place} at micro-batch {size} ({failure.message})"
        action = "emptied the cache to try again" if decision == "again" else f"trying {now}"
        self.record("out_of_memory", f"{ran_out}; {action}", failure=failure)
        return now

    def on_evaluation_failure(self, failure: Failure, size: int) -> None:
        """Record that memory ran out in an evaluation, which tries `size` examples next."""
        reason = f"{failure.message}; trying {size} examples"
        self.record("out_of_memory", reason, size=size, failure=failure)

    def on_success(self, result: Accumulated) -> None:
        """Count the step, and change the size of the next one if the policy says so."""
        assert self._micro is not None
        before, wait = self._micro.size, self._micro.wait
        decision = self._micro.on_success(
            is_single_part=result.is_single_part, allocator_retried=result.allocator_retried
        )
        now = self._micro.size
        if decision == "larger":
            reason = f"no failure in {wait} steps; trying micro-batch {now}"
            self.record("grown", reason, size=before)
        elif decision == "smaller":
            reason = "the allocator freed its cache and retried in consecutive steps"
            self.record("shrunk", f"{reason}; continuing at micro-batch {now}")
        self.steps += 1

    def record(
        self, kind: Kind, reason: str, *, size: int | None = None, failure: Failure | None = None
    ) -> None:
        """Record an event of this step; `size` is the one in use by default, 0 if there is none."""
        place = failure.place if failure else None
        size = self.size or 0 if size is None else size
        self._log.add(Event(kind, self.steps, reason, size, place))

    def state_dict(self) -> dict[str, Any]:
        """Return the size, with the one that was given, and the numbers of steps and events."""
        return {
            "steps": self.steps,
            "counts": dict(self.counts),
            "given": self._given,
            "micro_batch": self._micro.state_dict() if self._micro else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; keep a given size that differs from the saved given size."""
        self.steps = state["steps"]
        self._log.counts = dict(state["counts"])
        given = state.get("given", self._given)  # not in checkpoints of earlier versions
        if state["micro_batch"] is not None and self._given in ("auto", given):
            self._micro = MicroBatchSize(**state["micro_batch"])
