"""Stops runs that are clearly behind the others, by a median rule.

The rule is that of Optuna's `MedianPruner`. Runs are compared at equal seconds of training, and
with runs that differ in more than their seed. By itself the rule would stop half of the runs,
however little they differ; so a run is compared with the others at half its time.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rightbatch._study.marks import MARKS, PER_DOUBLING, Marks, mark_after, seconds_of
from rightbatch._study.records import Ended, Point, Run, RunKey, Target
from rightbatch._training.targets import is_better
from rightbatch._units import format_seconds

HANDICAP = PER_DOUBLING
"""Marks by which the others are delayed: a run that needs over twice their time is stopped."""
PATIENCE = 3
"""Consecutive marks at which a run has to be behind, since measurements are noisy."""
STARTUP = 4
"""Finished runs of other sizes before any run is stopped."""
WARM_UP = 0.1
"""Share of the finished runs' time before any run is stopped: rates and caches warm up."""
WITHOUT_TARGET = ("evaluation_loss", "loss")
"""The metric that is compared if there is no target: the first one that is measured."""

_Group = tuple[int, float]
"""Batch size and learning rate factor; runs of a group differ only in their seed."""


class Pruner:
    """Decides which runs of a sweep to stop. Thread-safe.

    A run is stopped if, at several consecutive marks, its best value so far is worse than the
    median of the finished runs of other groups after half as many seconds. After its end a finished
    run counts with its last value. Runs that failed or were stopped do not count.

    Args:
        target: its metric is compared; see `WITHOUT_TARGET`.
        runs: runs of an earlier call; the finished ones count.
    """

    def __init__(self, target: Target | None, runs: Sequence[Run] = ()) -> None:
        self._names = WITHOUT_TARGET if target is None else (target.metric,)
        self._lock = threading.Lock()
        self._running: dict[RunKey, _Running] = {}
        self._finished: list[tuple[_Group, Mapping[str, Marks]]] = []
        for run in runs:
            if run.status == "finished" and run.batch_size is not None:
                group = run.batch_size, run.learning_rate_factor
                self._finish(group, {name: Marks.of(run, name) for name in self._names})

    def verdict(self, key: RunKey, points: Sequence[Point]) -> str | None:
        """Add points of a run; return the reason to stop it, or None to continue."""
        with self._lock:
            if key not in self._running:
                self._running[key] = _Running({name: Marks(name) for name in self._names})
            running = self._running[key]
            for point in points:
                for name, marks in running.marks.items():
                    marks.add(point.seconds, point.steps, point.values.get(name))
            if not running.name:
                running.name = next((name for name in self._names if running.marks[name].at), "")
            return self._judge(_group(key), running) if running.name else None

    def ended(self, key: RunKey, ended: Ended) -> None:
        """Record the end of a run; if it finished, later points are compared with it."""
        with self._lock:
            running = self._running.pop(key, None)
            if running is not None and ended.status == "finished":
                self._finish(_group(key), running.marks)

    def _finish(self, group: _Group, marks: Mapping[str, Marks]) -> None:
        known = {name: one for name, one in marks.items() if one.newest is not None}
        self._finished.append((group, known))

    def _judge(self, group: _Group, running: _Running) -> str | None:
        name = running.name
        marks = running.marks[name]
        rivals = [known[name] for its, known in self._finished if its != group and name in known]
        times = [one.seconds for _, known in self._finished for one in known.values()]
        first = mark_after(WARM_UP * statistics.median(times)) if times else MARKS
        for mark in marks.take_new():
            then = [rival.value_at(mark - HANDICAP) for rival in rivals]
            values = [value for value in then if value is not None]
            if len(rivals) < STARTUP or mark < first or not values:
                running.behind = 0
                continue
            best, median = marks.best_until(mark), statistics.median(values)
            is_behind = best != median and is_better(name, median, best)
            running.behind = running.behind + 1 if is_behind else 0
            if running.behind == PATIENCE:
                side = "above" if best > median else "below"
                return (
                    f"pruned: at {format_seconds(seconds_of(mark))} its best {name} of {best:.4g} "
                    f"was {side} the median {median:.4g} that {len(values)} runs had at "
                    f"{format_seconds(seconds_of(mark - HANDICAP))}"
                )
        return None


@dataclass
class _Running:
    """A run in training; `name` is the metric that is compared, empty until one is measured."""

    marks: Mapping[str, Marks]
    name: str = ""
    behind: int = 0


def _group(key: RunKey) -> _Group:
    return key.batch_size, key.learning_rate_factor
