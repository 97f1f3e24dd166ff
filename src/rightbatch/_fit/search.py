"""Which size to run next, or which size is the answer: a pure function of the measurements.

1. Small sizes, doubling in one process, until their peaks lie on a line: they cannot run out of
   memory, so they can share a process. With `EXACT_MALLOC` the points lie close to the line.
2. The size that the line predicts, in a process of its own, as the user's run will be. (glibc's
   malloc holds more than the steps need, and more again after another size ran in the process.)
   If the largest size was predicted, it is next at once.
3. If it survives with room left, a larger one; if it runs out of memory, a smaller one; until at
   most 3% could still be gained. A size that the workload rejects shows which it takes
   (`rightbatch._workload.sizes`). A size ends after a few steps if it leaves so much room that a
   larger one is next in any case. The answer always ran all of its steps and survived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, linear_regression

from rightbatch._fit.probe import Probe
from rightbatch._workload.sizes import TRIED, Sizes, sizes_taken

TOLERANCE = 0.03
"""The search ends when at most this share of the answer could still be gained."""
MAX_PROCESSES = 5
MAX_REJECTED = 5
"""After this many processes whose size the workload rejected, no larger size is tried."""
SMALL_SHARE = 0.25
"""No small probe is expected to need more than this share of the room over the intercept."""
STRAIGHT = 0.03
"""Slopes between successive small probes that differ by less make a line."""
REFUTING = 0.75
"""A survivor that claims less than this share of what the small probes promised refutes them."""
HELD_SHARE = 0.17
"""What glibc's malloc holds beyond the line when a ceiling is nearly reached, as a share of the
room over the intercept: 13 to 25% on the workloads of benchmarks/fit.py. With a smaller
value more searches fail first: a failure is quick, but costs a process."""
STILL_TO_COME = 0.15
"""What the charge of a brief run may lack, as a share of the same room: up to 13% was seen."""
REACH = 0.9
"""Share of the room left by a survivor that the next size may take: what malloc holds grows too."""
CAUTION = 0.01
"""Aim this share below the predicted edge."""
SHRINK = 0.84
"""After a failure without a survivor nearby, try this share of the failed size."""
SMALL_STEPS, BRIEF_STEPS, FULL_STEPS = 2, 3, 6
MOST_STEPS = 16
"""An ordinary process runs until half of its steps have added nothing to the charge, or for this
many steps: what malloc holds grows from step to step, by 10% over six steps on one of the workloads
and by 8% from the fifth to the fortieth on another. Growth after that is added to the claim."""


@dataclass(frozen=True)
class Question:
    """The search problem: the largest size up to `largest` that claims at most `ceiling_bytes`.

    `slack` says that an ordinary process is charged more than an exact one. `predicted` is the
    largest size by `predict`; None if it has none. Every size is a multiple of `multiple`.
    """

    ceiling_bytes: int
    largest: int
    slack: bool
    predicted: int | None = None
    multiple: int = 1


@dataclass(frozen=True)
class Run:
    """Run this size next: in the process of the small probes, the current one, or a new one.

    Run from `steps` to `most_steps` steps, until the charge has settled. A charge below
    `enough_bytes` after `BRIEF_STEPS` ends the run, since a larger size is next in any case.
    """

    batch_size: int
    steps: int
    most_steps: int
    exact: bool
    fresh: bool = False
    enough_bytes: int = 0


def first(multiple: int) -> Run:
    """Return the run that starts a search."""
    return Run(multiple, SMALL_STEPS, SMALL_STEPS, exact=True, fresh=True)


@dataclass(frozen=True)
class Found:
    """The end of the search. `batch_size` is None if nothing fits or the workload failed."""

    batch_size: int | None
    smallest: int | None
    failed: Probe | None = None


@dataclass(frozen=True)
class Line:
    """Bytes needed as a linear function of the batch size."""

    slope: float
    intercept: float

    def at(self, batch_size: float) -> float:
        return self.intercept + self.slope * batch_size

    def size_at(self, needed: float) -> float:
        return (needed - self.intercept) / self.slope if self.slope > 0 else float("inf")


def fit_line(probes: Sequence[Probe]) -> Line | None:
    """Fit a line to the last three small probes (least squares); None with fewer than two."""
    points = [(p.batch_size, p.needed_bytes) for p in probes if p.is_ok and p.process == 1][-3:]
    if len(points) < 2:
        return None
    slope, intercept = linear_regression(*zip(*points, strict=True))
    if slope < 0:
        return Line(0.0, fmean(needed for _, needed in points))
    return Line(slope, intercept)


def _chord(probes: Sequence[Probe], best: Probe) -> Line:
    """Return the line through the smallest and largest survivor, or zero and the only one."""
    first = min((p for p in probes if p.is_ok), key=lambda p: p.batch_size)
    steps = best.batch_size - first.batch_size
    if not steps or best.needed_bytes <= first.needed_bytes:
        return Line(best.needed_bytes / best.batch_size, 0.0)
    slope = (best.needed_bytes - first.needed_bytes) / steps
    return Line(slope, best.needed_bytes - slope * best.batch_size)


def _refutes(best: Probe, line: Line) -> bool:
    """Whether a survivor needs so little that the line through the small probes is wrong.

    Something else than the size took memory in their process, as a thread that was started. What a
    brief run was charged says little, since more steps may add to it.
    """
    is_ordinary = best.process > 1 and best.whole
    return is_ordinary and best.claimed_bytes < REFUTING * line.at(best.batch_size)


def is_straight(probes: Sequence[Probe]) -> bool:
    """Whether the last three small probes lie on one line, judged by their slopes."""
    points = [(p.batch_size, p.needed_bytes) for p in probes if p.is_ok and p.process == 1][-3:]
    if len(points) < 3:
        return False
    (x0, y0), (x1, y1), (x2, y2) = points
    first, second = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    return second > 0 and abs(first - second) <= STRAIGHT * second


def decide(probes: Sequence[Probe], question: Question) -> Run | Found:
    """Return the next run, or the answer, from all measurements so far."""
    untaken = _without_size(probes, question)
    if untaken is not None:
        return untaken
    sizes = taken_by(probes, question)
    question = replace(question, largest=sizes.at_most(question.largest))
    rejected = [p for p in probes if p.outcome == "failed"]
    probes = [p for p in probes if p.outcome != "failed"]  # what follows is about memory
    fitting = [p for p in probes if fits(p, question)]
    too_large = [p for p in probes if not fits(p, question)]
    smallest = min((p.batch_size for p in fitting), default=None)
    low = max((p.batch_size for p in fitting), default=0)
    high = min((p.batch_size for p in too_large), default=None)
    if high is not None and high <= max(low, 1):
        # A size that survives only sometimes does not fit.
        low = max((p.batch_size for p in fitting if p.batch_size < high), default=0)
    if not low:
        return Found(None, None)

    if len({p.process for p in rejected} - {1}) >= MAX_REJECTED:
        question = replace(question, largest=low)
    elif sizes.bound is not None:
        question = replace(question, largest=min(question.largest, sizes.next_to_try(low)))
    run = _small(probes, question, low, high) or _large(probes, question, low, high)
    if run is not None:
        is_whole = any(p.batch_size == low and p.whole for p in fitting)
        most = question.largest if high is None else high - 1
        run = _snapped(run, sizes, low, most, is_whole)
    if run is not None:  # after a brief run the larger size may be rejected, and nothing is next
        return replace(run, enough_bytes=0) if rejected and rejected[-1].batch_size > low else run
    return Found(max(p.batch_size for p in fitting if p.whole and p.batch_size <= low), smallest)


def taken_by(probes: Sequence[Probe], question: Question) -> Sizes:
    """Return the sizes that the workload takes, as far as is known."""
    rejected = {p.batch_size for p in probes if p.outcome == "failed"}
    taken = {p.batch_size for p in probes} - rejected
    return sizes_taken(taken, rejected, question.multiple)


def _snapped(run: Run, sizes: Sizes, low: int, most: int, is_whole: bool) -> Run | None:
    """Return the run at a size that the workload takes; None if none is left to try.

    `low` is the largest survivor; if no run of it was whole, it may be run again.
    """
    size = sizes.at_most(run.batch_size)
    if size < low or (size == low and run.batch_size > low):
        size = sizes.after(low)
        if size > sizes.at_most(most):
            return None if is_whole else replace(run, batch_size=low, enough_bytes=0)
    return replace(run, batch_size=size)


def _without_size(probes: Sequence[Probe], question: Question) -> Run | Found | None:
    """Return the next size while the workload has rejected all, or that it is broken."""
    if not probes:
        return first(question.multiple)
    failed = [p for p in probes if p.outcome == "failed"]
    others = [p for p in probes if p.outcome != "failed"]
    if not failed or any(p.batch_size > question.multiple or not p.is_ok for p in others):
        return None
    tried = {p.batch_size for p in probes}
    for factor in TRIED:
        size = factor * question.multiple
        if size not in tried and size <= question.largest:
            return Run(size, SMALL_STEPS, SMALL_STEPS, exact=True)
    if others and question.largest == question.multiple:
        return None
    return Found(None, None, next((p for p in failed if p.batch_size > 1), failed[0]))


def fits(probe: Probe, question: Question) -> bool:
    """Whether a size survived, with its charge and its expected growth within the ceiling."""
    return probe.is_ok and probe.claimed_bytes <= question.ceiling_bytes


def _small(probes: Sequence[Probe], q: Question, low: int, high: int | None) -> Run | None:
    """Return the next size for the first process; None if its points suffice."""
    if any(p.process > 1 for p in probes) or high is not None or q.predicted is not None:
        return None
    line = fit_line(probes)
    following = min(2 * low, q.largest)
    if following == low:
        return None
    # The intercept (weights, what the factory imported) is needed at any size, so it is no risk.
    if line is not None:  # a second point is worth the risk
        room = q.ceiling_bytes - line.intercept
        if line.slope * following > SMALL_SHARE * room:
            return None
        if line.slope * low >= room / 16 and is_straight(probes):
            return None  # the points suffice
    return Run(following, SMALL_STEPS, SMALL_STEPS, exact=True)


def _large(probes: Sequence[Probe], q: Question, low: int, high: int | None) -> Run | None:
    """Return the next size for an ordinary process; None if the largest survivor is the answer."""
    best = [p for p in probes if p.batch_size == low and p.is_ok][-1]
    line = fit_line(probes)
    if line is None or _refutes(best, line):
        line = _chord(probes, best)
    is_settled = best.whole and (best.process > 1 or not q.slack)
    has_room = best.claimed_bytes <= 2 * SMALL_SHARE * q.ceiling_bytes
    if low == q.largest and (is_settled or has_room):
        return None
    if high is not None and high - 1 - low <= TOLERANCE * low and (is_settled or low == 1):
        return None

    processes = len({p.process for p in probes})
    spent = processes >= MAX_PROCESSES
    # A process that ran one size holds more memory at the next: a size that survives in it
    # survives in a new one, but a size that fails in it might too. So a process is reused only if
    # no new one may start.
    alive = probes[-1].is_ok and probes[-1].process > 1 and (spent or not q.slack)
    if spent and not alive:
        return None
    edge_by_line = _edge(line, q, best)
    if is_settled and best.process > 1 and edge_by_line - low <= max(TOLERANCE * low, 0.999):
        return None
    # What malloc holds grows too: from a survivor, not all of the room is taken at once.
    steps_on = best.process > 1 and q.slack
    aim = low + REACH * (edge_by_line - low) if steps_on else edge_by_line
    next_process = processes + (not alive)
    is_last = not alive and next_process == MAX_PROCESSES
    if high is not None:
        near = best.process > 1 and low >= 0.6 * high
        # If the size just within the tolerance of the failure survives, it is the answer. But if a
        # size failed that the survivor's line said would fit, the line is not to be trusted, and
        # the last process has to survive: then take the middle, from where it can continue.
        middle, edge = (low + high) / 2, high / (1 + TOLERANCE)
        was_broken = probes.index(best) < len(probes) - 1
        is_doubtful = was_broken or is_last or not best.whole
        least = middle if q.slack else low  # without slack the line is better than the middle
        promised = middle if is_doubtful else max(least, min(aim, edge))
        shrunk = SHRINK * high
        # One example does not give a slope, so a prediction that failed is only shrunk.
        aim = promised if near else shrunk if q.predicted is not None else min(aim, shrunk)
    elif best.process == 1 and q.predicted is not None:
        aim = q.predicted
    else:
        # An aim at the very edge fails as often as not, and a failure costs a process.
        aim -= min(0.1 * max(aim - low, 0.0), CAUTION * aim)
        aim = min(aim + 0.5, edge_by_line)
    ceiling = min(q.largest, high - 1 if high is not None else q.largest)
    floor = min(low + 1, ceiling) if is_settled or not best.whole else low
    size = int(max(floor, min(aim, ceiling)))
    if is_last and not best.whole:
        size = low  # there must be an answer; the process can continue from a size that survives
    return Run(
        size,
        FULL_STEPS,
        MOST_STEPS,
        exact=False,
        fresh=not alive,
        # The run after a brief one may fail, and so may the one after that.
        enough_bytes=_enough(size, line, q, high) if next_process <= MAX_PROCESSES - 2 else 0,
    )


def _enough(size: int, line: Line, q: Question, high: int | None) -> int:
    """Return the charge below which a larger size is next, whatever later steps add; 0 for none."""
    gain = max(2 * TOLERANCE * size, 4)
    if not q.slack or min(q.largest, high - 1 if high is not None else q.largest) < size + gain:
        return 0
    room = q.ceiling_bytes - line.intercept
    return max(int(q.ceiling_bytes - line.slope * gain - STILL_TO_COME * room), 0)


def _edge(line: Line, q: Question, best: Probe) -> float:
    """Estimate the size whose charge equals the ceiling, from the line and the largest survivor."""
    if best.process == 1 and q.slack:
        return line.size_at(q.ceiling_bytes - HELD_SHARE * (q.ceiling_bytes - line.intercept))
    extra = max(best.claimed_bytes - line.at(best.batch_size), 0.0)
    return line.size_at(q.ceiling_bytes - extra)
