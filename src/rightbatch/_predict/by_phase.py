"""A trace reduced to what each phase needs, where its single allocations depend on the data.

The loss of a segmentation model loops over its masks, so no two of its steps make the same
allocations. The peak of each phase, and what is alive at its end, are linear in the batch size all
the same.
"""

from __future__ import annotations

from itertools import accumulate

from rightbatch._predict.trace import Trace

_LASTING = ("parameters", "gradients", "optimizer")
PARTS = 32
"""Equal storages that stand for what a phase allocates at its peak beside what lasts."""


def by_phase(trace: Trace) -> Trace:
    """Return a trace with the same live bytes at the peak and at the end of every phase.

    Parameters, gradients, optimizer state, and what was there at first, stay as they are. All else
    is `PARTS` storages that raise a phase to its peak, and as many that hold what is alive at its
    end.
    """
    starts = [index for index, _ in trace.phases]
    first = starts[0] if starts else len(trace.order)
    lasting = {i for i, kind in enumerate(trace.kinds) if kind in _LASTING}
    lasting |= {event for event in trace.order[:first] if event >= 0}
    made = _Builder(trace)
    levels = list(trace.live_bytes())
    held = list(accumulate(_change(trace, event, lasting) for event in trace.order))
    made.take(range(first), lasting)
    for (start, name), stop in zip(trace.phases, [*starts[1:], len(trace.order)], strict=True):
        made.phases.append((len(made.order), name))
        if start == stop:
            continue
        alive = levels[start - 1] if start else 0
        peak = made.add(max(max(levels[start:stop]) - max(alive, made.level), 0))
        if name in ("forward", "backward") and len(made.gemms) < len(trace.gemms):
            made.gemms.append(len(made.order) - 1)
        made.free(peak)
        made.free(made.carried)
        made.take(range(start, stop), lasting)
        made.carried = made.add(max(levels[stop - 1] - held[stop - 1], 0))
    return made.trace()


def _change(trace: Trace, event: int, wanted: set[int]) -> int:
    index = event if event >= 0 else ~event
    if index not in wanted:
        return 0
    return trace.sizes[index] if event >= 0 else -trace.sizes[index]


class _Builder:
    """The events of a new trace; storages are numbered anew, in the order of their allocation."""

    def __init__(self, trace: Trace) -> None:
        self._of = trace
        self._new: dict[int, int] = {}
        self.order: list[int] = []
        self.sizes: list[int] = []
        self._kinds: list[str] = []
        self._places: list[str] = []
        self.phases: list[tuple[int, str]] = []
        self.gemms: list[int] = []
        self.carried: list[int] = []
        self.level = 0

    def take(self, events: range, lasting: set[int]) -> None:
        """Repeat the events of the trace that are of lasting storages."""
        for position in events:
            event = self._of.order[position]
            index = event if event >= 0 else ~event
            if index not in lasting:
                continue
            if event >= 0:
                self._new[index] = self._allocate(
                    self._of.sizes[index], self._of.kinds[index], self._of.places[index]
                )
            else:
                self.free([self._new.pop(index)])

    def add(self, total: int) -> list[int]:
        """Allocate `PARTS` storages of `total` bytes together, as equal as bytes allow."""
        share, rest = divmod(total, PARTS)
        return [self._allocate(share + (n < rest), "activations", "") for n in range(PARTS)]

    def free(self, indices: list[int]) -> None:
        for index in indices:
            self.order.append(~index)
            self.level -= self.sizes[index]

    def _allocate(self, size: int, kind: str, place: str) -> int:
        index = len(self.sizes)
        self.sizes.append(size)
        self._kinds.append(kind)
        self._places.append(place)
        self.order.append(index)
        self.level += size
        return index

    def trace(self) -> Trace:
        return Trace(
            order=tuple(self.order),
            sizes=tuple(self.sizes),
            kinds=tuple(self._kinds),
            places=tuple(self._places),
            phases=tuple(self.phases),
            gemms=tuple(self.gemms),
            operators=self._of.operators,
        )
