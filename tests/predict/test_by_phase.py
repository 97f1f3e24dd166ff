"""A trace by phases has the live bytes of the whole one where a phase has its peak or its end."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from rightbatch._predict.by_phase import by_phase
from rightbatch._predict.trace import KINDS, Trace

PHASES = ("zero gradients", "forward", "backward", "optimizer", "evaluation")


def drawn(seed: int, events: int) -> Trace:
    """A trace of random allocations of all kinds; what lasts is freed, too."""
    rng = random.Random(seed)
    order: list[int] = []
    sizes: list[int] = []
    kinds: list[str] = []
    alive: list[int] = []
    phases: list[tuple[int, str]] = []
    for phase in ("", *PHASES, *PHASES):
        if phase:
            phases.append((len(order), phase))
        for _ in range(rng.randrange(events)):
            if alive and rng.random() < 0.45:
                order.append(~alive.pop(rng.randrange(len(alive))))
            else:
                alive.append(len(sizes))
                order.append(len(sizes))
                sizes.append(rng.randrange(1, 10**6))
                kinds.append(rng.choice(KINDS))
    places = ("",) * len(sizes)
    return Trace(tuple(order), tuple(sizes), tuple(kinds), places, tuple(phases), (), ())


def levels(trace: Trace) -> list[tuple[str, int, int]]:
    """The name, the peak and the last level of each phase with events."""
    live = list(trace.live_bytes())
    starts = [index for index, _ in trace.phases]
    stops = [*starts[1:], len(live)]
    return [
        (name, max(live[start:stop]), live[stop - 1])
        for (start, name), stop in zip(trace.phases, stops, strict=True)
        if start < stop
    ]


@given(st.integers(0, 10**6), st.integers(2, 40))
def test_peaks_and_ends_of_phases_are_kept(seed: int, events: int) -> None:
    trace = drawn(seed, events)
    reduced = by_phase(trace)
    for (name, peak, end), (same, low, close) in zip(levels(trace), levels(reduced), strict=True):
        assert (name, end) == (same, close)
        assert low >= peak, "never below what the phase needs"
    assert reduced.peak_bytes >= trace.peak_bytes


@given(st.integers(0, 10**6))
def test_two_traces_whose_transient_allocations_differ_have_the_same_events(seed: int) -> None:
    trace = drawn(seed, 20)
    rng = random.Random(seed)
    order, sizes, kinds = list(trace.order), list(trace.sizes), list(trace.kinds)
    position = rng.randrange(trace.phases[0][0], len(order) + 1)
    order[position:position] = [len(sizes), ~len(sizes)]
    phases = tuple((at + 2 * (at > position), name) for at, name in trace.phases)
    more = Trace(
        tuple(order), (*sizes, 7), (*kinds, "activations"), (*trace.places, ""), phases, (), ()
    )
    starts = {at for at, _ in trace.phases}
    if position in starts:  # the phase that it belongs to may have had no events
        return
    assert not more.is_like(trace)
    assert by_phase(more).is_like(by_phase(trace))
