"""Runs without hope, ended by Optuna's median rule.

A size is to be first in seconds, so runs are compared by the seconds they have trained, and with
runs that differ in more than their seed: one size has an Optuna study that holds the others' runs.
The median rule alone would end half of them, however little they differ; so the others are taken
to have needed twice the time they did.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rightbatch._study.optuna_studies import optuna_module, study_in_memory
from rightbatch._study.records import Ended, Point, Run, RunKey, Target
from rightbatch._training.targets import is_better
from rightbatch._units import format_seconds

FIRST_MARK, PER_DOUBLING = 0.1, 4
"""Runs are compared after so many seconds, and then so many times per doubling of them."""
MARKS = 24 * PER_DOUBLING
"""19 days."""
HANDICAP = PER_DOUBLING
"""Marks by which the others are put back: hopeless is who needs more than twice their time."""
PATIENCE = 3
"""Marks in a row at which a run has to be behind: noise passes."""
STARTUP = 4
"""Finished runs of other sizes, before which none is judged."""
WARM_UP = 0.1
"""Of the time of the finished runs, in which none is judged: learning rates and caches warm up."""
WITHOUT_TARGET = ("evaluation_loss", "loss")
"""What is compared where no target says it: the first that is measured."""

_Rivalry = tuple[tuple[int, float], str]
"""Batch size and learning rate factor, and the metric that is compared."""


class Pruner:
    """Judges the runs of a sweep; safe to use from several threads.

    A run is without hope where the best that it has measured so far was worse than the median of
    finished runs of other sizes, or of other learning rates, after half as many seconds, at several
    marks in a row. A finished run counts with its last value after its end. Runs that failed or
    were ended are not compared with.

    Args:
        target: whose metric is compared; without one, the evaluation loss or the training loss.
        runs: of an earlier call; those that finished are compared with.

    Raises:
        MissingExtraError: without optuna.
    """

    def __init__(self, target: Target | None, runs: Sequence[Run] = ()) -> None:
        self._optuna = optuna_module()
        self._names = WITHOUT_TARGET if target is None else (target.metric,)
        self._lock = threading.Lock()
        self._running: dict[RunKey, _Running] = {}
        self._finished: list[_Finished] = []
        self._studies: dict[_Rivalry, Any] = {}
        for run in runs:
            if run.status == "finished" and run.batch_size is not None:
                self._finish((run.batch_size, run.learning_rate_factor), self._marks_of(run))

    def verdict(self, key: RunKey, points: Sequence[Point]) -> str | None:
        """Why the run ends here; None lets it go on."""
        with self._lock:
            if key not in self._running:
                self._running[key] = _Running({name: Marks(name) for name in self._names})
            running = self._running[key]
            for point in points:
                for name, marks in running.marks.items():
                    marks.add(point.seconds, point.steps, point.values.get(name))
            return self._judged(key, running)

    def ended(self, key: RunKey, ended: Ended) -> None:
        """The run is over; where it finished, others are compared with it from now on."""
        with self._lock:
            running = self._running.pop(key, None)
            if running is None:
                return
            if running.trial is not None:
                study = self._study(_group(key), running.name)
                study.tell(running.trial, state=self._optuna.trial.TrialState.FAIL)
            if ended.status == "finished":
                self._finish(_group(key), running.marks)

    def _judged(self, key: RunKey, running: _Running) -> str | None:
        if running.trial is None:
            running.name = next((name for name in self._names if running.marks[name].at), "")
            if not running.name:
                return None
            running.trial = self._study(_group(key), running.name).ask()
        marks = running.marks[running.name]
        for mark in marks.taken():
            running.trial.report(marks.at[mark], mark)
            running.behind = running.behind + 1 if running.trial.should_prune() else 0
            if running.behind == PATIENCE:
                return self._reason(key, running, mark)
        return None

    def _reason(self, key: RunKey, running: _Running, mark: int) -> str:
        name, state = running.name, self._optuna.trial.TrialState.COMPLETE
        rivals = self._study(_group(key), name).get_trials(deepcopy=False, states=(state,))
        values = [rival.intermediate_values[mark] for rival in rivals]
        seen = list(running.marks[name].at.values())
        best, side = (min(seen), "above") if _falls(name) else (max(seen), "below")
        return (
            f"pruned: at {format_seconds(seconds_of(mark))} its best {name} of {best:.4g} was "
            f"{side} the median {statistics.median(values):.4g} that {len(values)} runs had at "
            f"{format_seconds(seconds_of(mark - HANDICAP))}"
        )

    def _study(self, group: tuple[int, float], name: str) -> Any:
        """With the finished runs of all other sizes and learning rates."""
        rivalry = (group, name)
        if rivalry not in self._studies:
            direction = "minimize" if _falls(name) else "maximize"
            study = study_in_memory(direction=direction, pruner=self._pruner())
            self._studies[rivalry] = study
            for finished in self._finished:
                self._let_join(study, rivalry, finished)
        return self._studies[rivalry]

    def _finish(self, group: tuple[int, float], marks: dict[str, Marks]) -> None:
        finished = _Finished(group, {name: one for name, one in marks.items() if one.is_known})
        self._finished.append(finished)
        for rivalry, study in self._studies.items():
            study.pruner = self._pruner()
            self._let_join(study, rivalry, finished)

    def _let_join(self, study: Any, rivalry: _Rivalry, finished: _Finished) -> None:
        group, name = rivalry
        if finished.group == group or name not in finished.marks:
            return
        values = finished.marks[name].to_the_end()
        put_back = {mark + HANDICAP: value for mark, value in values.items()}
        study.add_trial(
            self._optuna.trial.create_trial(value=values[MARKS - 1], intermediate_values=put_back)
        )

    def _pruner(self) -> Any:
        times = [marks.seconds for one in self._finished for marks in one.marks.values()]
        first = mark_after(WARM_UP * statistics.median(times)) if times else 0
        return self._optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=first)

    def _marks_of(self, run: Run) -> dict[str, Marks]:
        found = {}
        for name in self._names:
            found[name] = marks = Marks(name)
            if (curve := run.curves.get(name)) is not None:
                for seconds, steps, value in zip(
                    curve.seconds.tolist(), curve.steps.tolist(), curve.values.tolist(), strict=True
                ):
                    marks.add(seconds, steps, value)
        return found


class Marks:
    """What was known of a metric at the marks that training has passed, and when it ended.

    That is the newest measurement; of the training loss the mean since the mark before.
    """

    def __init__(self, name: str) -> None:
        self.at: dict[int, float] = {}
        self.seconds = 0.0
        self._is_mean = name == "loss"
        self._next, self._steps = 0, 0.0
        self._newest: float | None = None
        self._is_new = False
        self._sum, self._weight = 0.0, 0.0
        self._untaken: list[int] = []

    @property
    def is_known(self) -> bool:
        """Whether anything was measured."""
        return self._newest is not None

    def add(self, seconds: float, steps: float, value: float | None) -> None:
        """A point, with a measurement or without."""
        first = self._next
        while self._next < MARKS and seconds_of(self._next) < seconds:
            if self._newest is not None:
                self.at[self._next] = self._newest
            self._next += 1
        if self._next > first:
            self._sum, self._weight = 0.0, 0.0
            if self._is_new:
                # one mark for one measurement, else a long step would be judged again and again
                self._untaken.append(self._next - 1)
                self._is_new = False
        self.seconds = seconds
        if value is not None and math.isfinite(value):
            weight = max(steps - self._steps, 1.0)
            self._sum, self._weight = self._sum + weight * value, self._weight + weight
            self._newest = self._sum / self._weight if self._is_mean else value
            self._is_new = True
            self._steps = steps

    def taken(self) -> list[int]:
        """Marks before which something was measured, each given once."""
        untaken, self._untaken = self._untaken, []
        return untaken

    def to_the_end(self) -> dict[int, float]:
        """As of a run that has ended: what was known last is known from then on."""
        assert self._newest is not None
        return self.at | dict.fromkeys(range(self._next, MARKS), self._newest)


@dataclass
class _Running:
    """A run in flight: its trial is in the study of its rivals, once there is what to compare."""

    marks: dict[str, Marks]
    name: str = ""
    trial: Any = None
    behind: int = 0


@dataclass(frozen=True)
class _Finished:
    group: tuple[int, float]
    marks: dict[str, Marks] = field(repr=False)


def seconds_of(mark: int) -> float:
    """Of training.

    >>> [seconds_of(mark) for mark in (0, 4, 8)]
    [0.1, 0.2, 0.4]
    """
    return float(FIRST_MARK * 2 ** (mark / PER_DOUBLING))


def mark_after(seconds: float) -> int:
    """The first that is not before.

    >>> mark_after(0.4), mark_after(0.41), mark_after(0)
    (8, 9, 0)
    """
    return next((mark for mark in range(MARKS) if seconds_of(mark) >= seconds), MARKS)


def _group(key: RunKey) -> tuple[int, float]:
    return key.batch_size, key.learning_rate_factor


def _falls(name: str) -> bool:
    return is_better(name, 0.0, 1.0)
