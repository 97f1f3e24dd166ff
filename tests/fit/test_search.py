"""The search against simulated memories, whose true largest batch brute force knows."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rightbatch import UsageError
from rightbatch._fit.options import FitOptions
from rightbatch._fit.probe import Probe
from rightbatch._fit.search import (
    MAX_PROCESSES,
    MAX_REJECTED,
    TOLERANCE,
    Found,
    Question,
    Run,
    decide,
    fit_line,
)

MIB = 2**20
CEILING = 2048 * MIB


@dataclass
class Machine:
    """Runs what the search asks for: `needed(size)` bytes, and `held(size)` beyond them."""

    needed: Callable[[int], float]
    held: Callable[[int], float] = lambda size: 0.0
    held_early: float = 1.0  # the share of it that a brief run sees
    ceiling: int = CEILING
    fails_at: tuple[int, ...] = ()

    def largest(self, up_to: int) -> int:
        sizes = (s for s in range(up_to, 0, -1) if self.charge(s, exact=False) <= self.ceiling)
        return next(sizes, 0)

    def charge(self, size: int, *, exact: bool) -> float:
        return self.needed(size) + (0.0 if exact else self.held(size))

    def run(self, run: Run, process: int) -> Probe:
        if run.batch_size in self.fails_at:
            return Probe(run.batch_size, "failed", 0.1, process)
        charged = self.charge(run.batch_size, exact=run.exact)
        if charged > self.ceiling:
            return Probe(run.batch_size, "out_of_memory", 0.1, process)
        needed = int(self.needed(run.batch_size))
        early = needed + self.held_early * (charged - needed)
        is_brief = early < run.enough_bytes
        return Probe(
            run.batch_size,
            "ok",
            0.1,
            process,
            peak_bytes=needed,
            charged_bytes=int(early if is_brief else charged),
            whole=not is_brief,
        )


def search(
    machine: Machine, *, largest: int, slack: bool, predicted: int | None = None
) -> tuple[Found, list[Probe]]:
    question = Question(machine.ceiling, largest, slack, predicted)
    probes: list[Probe] = []
    process = 1
    for _ in range(60):
        decision = decide(probes, question)
        if isinstance(decision, Found):
            return decision, probes
        if decision.fresh and probes:
            process += 1
        elif probes:
            assert probes[-1].outcome in ("ok", "failed"), "a dead process cannot go on"
        probes.append(machine.run(decision, process))
    raise AssertionError(f"no end: {[(p.batch_size, p.outcome) for p in probes]}")


@dataclass
class Restless(Machine):
    """Takes `jump` bytes once, not for a size: between the small probes, and later if `always`."""

    jump: float = 80 * MIB
    always: bool = False

    def run(self, run: Run, process: int) -> Probe:
        extra = self.jump if (process == 1 and run.batch_size > 1) or self.always else 0.0
        quiet, self.needed = self.needed, lambda size: quiet(size) + extra
        try:
            return super().run(run, process)
        finally:
            self.needed = quiet


lines = st.tuples(st.floats(1, 1200), st.floats(0.01, 400)).map(
    lambda pair: lambda size: (pair[0] + pair[1] * size) * MIB
)


@given(lines, st.integers(1, 5000), st.booleans())
@example(lambda size: (8 + 8 * size) * MIB, 255, True)  # 247 leaves a gain of just over 3%
def test_a_line_is_searched_to_within_the_tolerance(
    needed: Callable[[int], float], largest: int, slack: bool
) -> None:
    machine = Machine(needed)
    true = machine.largest(largest)

    found, probes = search(machine, largest=largest, slack=slack)

    if true == 0:
        assert found.batch_size is None
        return
    assert found.batch_size is not None
    assert true - max(1, TOLERANCE * true) <= found.batch_size <= true
    # With slack, every size is alone in its process, and a last one may be tried at the very edge.
    assert max(p.process for p in probes) <= (4 if slack else 3)


@given(
    lines,
    st.integers(1, 5000),
    st.floats(0, 0.4),
    st.floats(0, 1.5),
    st.floats(0.5, 1),
    st.integers(0, 2**32),
)
def test_what_malloc_holds_is_found_out_by_running(
    needed: Callable[[int], float],
    largest: int,
    share: float,
    power: float,
    early: float,
    seed: int,
) -> None:
    noise = random.Random(seed)
    jitter = {size: noise.uniform(0.98, 1.02) for size in range(1, largest + 1)}

    def held(size: int) -> float:
        return share * (CEILING - needed(0)) * min(size / 400, 1.0) ** power * jitter[size]

    machine = Machine(needed, held, held_early=early)
    true = machine.largest(largest)

    found, probes = search(machine, largest=largest, slack=True)

    assert any(p.whole and p.is_ok and p.batch_size == found.batch_size for p in probes)
    assert max(p.process for p in probes) <= MAX_PROCESSES
    if found.batch_size is not None and true:
        assert found.batch_size <= largest
        assert found.batch_size >= 0.9 * true - 1


@given(
    st.lists(st.floats(0.5, 60), min_size=40, max_size=40),
    st.integers(1, 40),
    st.booleans(),
)
def test_the_answer_was_always_run_and_survived_whatever_the_memory_does(
    steps: list[float], largest: int, slack: bool
) -> None:
    total = [sum(steps[: size + 1]) * MIB * 3 for size in range(41)]
    found, probes = search(Machine(lambda size: total[size]), largest=largest, slack=slack)
    if found.batch_size is not None:
        assert any(p.is_ok and p.batch_size == found.batch_size for p in probes)
        assert not any(
            p.outcome == "out_of_memory" and p.batch_size <= found.batch_size for p in probes
        )
    assert all(1 <= p.batch_size <= largest for p in probes)
    assert max(p.process for p in probes) <= MAX_PROCESSES


def test_small_sizes_share_the_first_process_and_stay_small() -> None:
    machine = Machine(lambda size: (200 + 4 * size) * MIB)
    _, probes = search(machine, largest=10_000, slack=True)
    small = [p for p in probes if p.process == 1]
    assert [p.batch_size for p in small] == [1, 2, 4, 8, 16, 32]
    assert all(p.is_ok for p in small)
    others = {p.process for p in probes} - {1}
    assert len(others) <= 2


def test_only_a_size_that_leaves_room_for_a_larger_one_ends_early() -> None:
    def held(size: int) -> float:
        return 600.0 * MIB if size > 350 else 0.0

    machine = Machine(lambda size: (200 + 4 * size) * MIB, held)
    found, probes = search(machine, largest=10_000, slack=True)
    brief = [p for p in probes if not p.whole]
    assert found.batch_size is not None
    assert [p.process for p in brief] == [3]  # the size after the failed one
    assert brief[0].batch_size < found.batch_size * (1 - TOLERANCE)
    assert probes[-1].whole


def test_a_small_data_set_needs_one_process() -> None:
    found, probes = search(Machine(lambda size: size * MIB), largest=100, slack=True)
    assert found.batch_size == 100
    assert {p.process for p in probes} == {1}


def test_a_failure_at_one_example_alone_makes_two_the_smallest() -> None:
    machine = Machine(lambda size: (100 + size) * MIB, fails_at=(1,))
    found, _ = search(machine, largest=64, slack=False)
    assert (found.batch_size, found.smallest) == (64, 2)


def test_a_workload_that_fails_at_every_size_ends_the_search_with_its_error() -> None:
    machine = Machine(lambda size: (100 + size) * MIB, fails_at=tuple(range(1, 65)))
    found, probes = search(machine, largest=64, slack=False)
    assert found.batch_size is None
    assert found.failed is not None
    assert found.failed.batch_size == 2
    assert {p.process for p in probes} == {1}


def test_a_workload_that_takes_one_example_alone_ends_the_search_with_its_error() -> None:
    """As without padding: a batch of one is made, and no other."""
    machine = Machine(lambda size: (100 + size) * MIB, fails_at=tuple(range(2, 65)))
    found, _ = search(machine, largest=64, slack=True)
    assert found.failed is not None
    assert found.failed.batch_size == 2


@pytest.mark.parametrize(
    "takes",
    [
        *(lambda size, k=k: size % k == 0 for k in (2, 3, 4, 5, 6, 8, 10, 16)),
        *(lambda size, n=n: n % size == 0 for n in (1024, 4096, 65536)),  # a queue's length
        *(lambda size, n=n: size <= n for n in (7, 30, 64, 300)),  # positions, for example
        lambda size: size >= 2 and size % 2 == 0,
        lambda size: size >= 3,
    ],
)
@given(needed=lines, largest=st.integers(1, 5000), slack=st.booleans())
def test_sizes_that_the_workload_rejects_are_stepped_over(
    takes: Callable[[int], bool], needed: Callable[[int], float], largest: int, slack: bool
) -> None:
    rejected = tuple(size for size in range(1, largest + 1) if not takes(size))
    machine = Machine(needed, fails_at=rejected)
    taken = [size for size in range(1, machine.largest(largest) + 1) if takes(size)]

    found, probes = search(machine, largest=largest, slack=slack)

    if found.batch_size is None:  # a workload that takes 16 and no smaller size may need too much
        assert not taken or found.failed or needed(min(taken)) > 0.2 * CEILING
        return
    assert found.batch_size in taken
    assert found.batch_size >= 0.8 * max(taken) - 16
    assert len({p.process for p in probes}) <= MAX_PROCESSES + MAX_REJECTED


def test_an_upper_bound_is_found_in_a_few_processes() -> None:
    machine = Machine(lambda size: (909 + 29 * size) * MIB, fails_at=tuple(range(8, 33)))
    found, probes = search(machine, largest=32, slack=True)
    assert found.batch_size == 7
    assert [p.batch_size for p in probes if p.outcome == "failed"] == [32, 8]


def test_with_a_multiple_no_other_sizes_are_run() -> None:
    question = Question(CEILING, 1000, slack=True, multiple=8)
    machine = Machine(lambda size: (50 + 7 * size) * MIB)
    probes: list[Probe] = []
    while isinstance(decision := decide(probes, question), Run):
        assert decision.batch_size % 8 == 0
        process = probes[-1].process + decision.fresh if probes else 1
        probes.append(machine.run(decision, process))
    assert decision.batch_size == 280  # of at most 285


def test_a_multiple_beyond_max_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="max_batch=4 is less than multiple=8"):
        FitOptions(multiple=8, max_batch=4)


def test_nothing_fits_when_one_example_does_not() -> None:
    found, probes = search(Machine(lambda size: 3000.0 * MIB), largest=64, slack=True)
    assert found == Found(None, None, None)
    assert len(probes) == 1


def test_a_charge_over_the_ceiling_counts_as_too_large_where_nothing_enforces_it() -> None:
    over = Probe(1, "ok", 0.1, 1, peak_bytes=CEILING + 1, charged_bytes=CEILING + 1)
    assert decide([over], Question(CEILING, 64, slack=False)) == Found(None, None, None)


def test_a_size_whose_charge_still_grows_past_the_ceiling_counts_as_too_large() -> None:
    probes = [
        Probe(size, "ok", 0.1, 1, peak_bytes=size * MIB, charged_bytes=size * MIB)
        for size in (16, 32, 64)
    ]
    fits = Probe(900, "ok", 0.1, 2, peak_bytes=900 * MIB, charged_bytes=900 * MIB)
    grows = replace(fits, charged_bytes=CEILING - MIB, growing_bytes=2 * MIB)
    question = Question(CEILING, 4000, slack=True)

    following = decide([*probes, grows], question)
    assert isinstance(following, Run)
    assert following.batch_size < 900
    assert following.fresh


def test_the_line_is_that_of_the_last_three_small_probes() -> None:
    probes = [
        Probe(size, "ok", 0.1, 1, peak_bytes=100 + 7 * size, charged_bytes=1)
        for size in (1, 2, 4, 8)
    ]
    probes.append(Probe(16, "ok", 0.1, 2, peak_bytes=10**9, charged_bytes=1))
    line = fit_line(probes)
    assert line is not None
    assert line.slope == pytest.approx(7)
    assert line.intercept == pytest.approx(100)


@given(st.floats(0.1, 20), st.floats(0, 600), st.floats(0.7, 1.4), st.integers(1, 5000))
def test_a_predicted_size_is_run_first_and_corrected_where_it_is_wrong(
    slope: float, intercept: float, error: float, examples: int
) -> None:
    machine = Machine(lambda size: (intercept + slope * size) * MIB)
    largest = machine.largest(examples)
    predicted = max(1, int(error * largest))
    found, probes = search(machine, largest=examples, slack=False, predicted=predicted)
    assert found.batch_size is not None
    assert found.batch_size <= largest <= found.batch_size * 1.03 + 1
    if predicted > 1 and examples > 1:
        assert [probe.batch_size for probe in probes[:2]] == [1, min(predicted, examples)]
    if 0.99 <= error <= 1:
        assert len(probes) <= 4


def test_the_last_process_takes_the_middle_and_goes_on_from_there() -> None:
    # As in a run where malloc held more and more: 39 survives with much room, and 45 fails.
    probes = [
        Probe(size, "ok", 0.1, 1, peak_bytes=8 * size * MIB, charged_bytes=8 * size * MIB)
        for size in (1, 2, 4, 8)
    ]
    probes += [Probe(size, "out_of_memory", 0.1, n) for n, size in ((2, 56), (3, 47))]
    probes.append(Probe(39, "ok", 0.1, 4, peak_bytes=313 * MIB, charged_bytes=313 * MIB))
    question = Question(380 * MIB, 4000, slack=True)

    following = decide(probes, question)
    assert isinstance(following, Run)
    assert (following.batch_size, following.fresh) == (43, True)

    probes.append(Probe(43, "ok", 0.1, 5, peak_bytes=345 * MIB, charged_bytes=345 * MIB))
    following = decide(probes, question)
    assert isinstance(following, Run)
    assert 43 < following.batch_size < 47
    assert not following.fresh


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("slope", [0.001, 0.1, 1.0, 4.0])
@pytest.mark.parametrize("largest", [32, 1000])
def test_a_thread_that_starts_between_two_sizes_is_not_taken_for_their_difference(
    slope: float, always: bool, largest: int
) -> None:
    machine = Restless(lambda size: (8 + slope * size) * MIB, ceiling=285 * MIB, always=always)
    found, probes = search(machine, largest=largest, slack=True)
    room = 285 - 8 - (80 if always else 0)
    edge = min(largest, int(room / slope))
    assert found.batch_size is not None
    assert found.batch_size >= (1 - 2 * TOLERANCE) * edge, [
        (p.batch_size, p.outcome, p.process) for p in probes
    ]
