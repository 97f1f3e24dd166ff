"""How a run of a study ends, if it is a command."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rightbatch._study.records import Curve, Ended, Point, Run, Status, Target
from rightbatch._study.runs.plan import RunPlan
from rightbatch._training.targets import is_better
from rightbatch._worker.failure import Failure
from rightbatch.integrations.command.command_output import OutputNumbers
from rightbatch.integrations.command.observed import Observed
from rightbatch.integrations.command.run_points import RunPoints
from rightbatch.integrations.command.template import hide_secrets
from rightbatch.integrations.command.trial import end_of, verdict
from rightbatch.integrations.command.watch import watched_of

_LOSS = "loss"


class RunEnd:
    """Decides from a run's points when to end its command: then there is a `reason`."""

    def __init__(self, plan: RunPlan) -> None:
        self.steps = plan.options.steps
        self.reason = ""
        self.is_diverged = self._is_decided = False
        self.batch_size, self._seconds = plan.key.batch_size, plan.options.budget_seconds
        self._target = plan.config.target
        self._curve: list[Point] = []

    def take(self, points: Iterator[Point]) -> tuple[Point, ...]:
        """Return the points up to the one that ends the run; none after that."""
        taken: list[Point] = []
        while not self._is_decided and (point := next(points, None)) is not None:
            taken.append(point)
            self._judge(point)
        if self._target is not None and self._target.metric == _LOSS and not self._is_decided:
            self._curve += [point for point in taken if _LOSS in point.values]
            if taken and self._reaches(self._target):
                self._decide(f"the smoothed loss reached {self._target.value:g}")
        return tuple(taken)

    def _decide(self, reason: str) -> None:
        self.reason, self._is_decided = reason, True

    def _judge(self, point: Point) -> None:
        loss = point.values.get(_LOSS)
        if loss is not None and not math.isfinite(loss):
            self.is_diverged = True
            self._decide(f"the loss became {loss}")
        elif self._seconds is not None and point.seconds >= self._seconds:
            self._decide(f"trained for {point.seconds:.1f} s, the budget of {self._seconds:g} s")
        elif self._target is not None and self._target.metric != _LOSS:
            name, wanted = self._target.metric, self._target.value
            value = point.values.get(name)
            if value is not None and is_better(name, value, wanted):
                self._decide(f"{name} reached {value:.4g} (target {wanted:g})")

    def _reaches(self, target: Target) -> bool:
        """Whether the loss, smoothed as in the study's comparison, has reached the target."""
        import numpy as np

        from rightbatch._study.analysis.steps_to_target import smooth

        if not self._curve:
            return False
        axes = ("steps", "examples", "seconds", "epochs")
        columns = {axis: np.array([getattr(p, axis) for p in self._curve], float) for axis in axes}
        losses = np.array([point.values[_LOSS] for point in self._curve])
        curve = Curve(**columns, values=losses)
        run = Run("", "", self.batch_size, None, "running", curves={_LOSS: curve})
        return bool((smooth(run, curve)[1] <= target.value).any())


def ended_of(
    observed: Observed,
    command: Sequence[str],
    code: int,
    log: Path,
    points: RunPoints,
    end: RunEnd,
    numbers: OutputNumbers,
    learning_rate: float | None,
) -> Ended:
    """Return how a run ended; `code` is the exit code of its `command`, or of its being ended."""
    with log.open("rb") as file:
        output = hide_secrets(end_of(file), command, os.environ)
    observed.hide_secrets(command)
    status, reason, failure = _outcome(observed, code, output, end)
    at, watched = points.state, watched_of(observed, code)
    if status == "finished" and not at.steps:
        status, reason = "failed", "the command made no training step; is a batch too large?"
        failure = Failure("NoStep", reason, output)
    size = watched.batch_size
    parts = (watched.micro_batches or 0) * watched.ranks
    return Ended(
        status,
        "; ".join([reason, *_notes(end, size, numbers)] if status == "finished" else [reason]),
        micro_batch_size=size // parts if size and parts else None,
        steps=at.steps,
        examples=int(at.examples),
        seconds=at.seconds,
        epochs=at.epochs,
        learning_rate=learning_rate or next((r.learning_rate for r in observed.trainers), None),
        peak_bytes=watched.peak_bytes,
        limit_bytes=watched.limit_bytes,
        device=watched.device,
        metrics={name: value for name, value in at.values.items() if math.isfinite(value)},
        error=None if failure is None else dict(vars(failure)),
    )


def _outcome(
    observed: Observed, code: int, output: str, end: RunEnd
) -> tuple[Status, str, Failure | None]:
    if end.is_diverged:
        return "diverged", end.reason, None
    if end.reason:
        return "finished", end.reason, None
    outcome, failure = verdict(observed, code, output)
    if failure is None:
        return "finished", "the command ended", None
    if outcome == "failed" and observed.failure is None:
        last = output.strip().rpartition("\n")[2][:300]  # a program's own message
        return "failed", f"{failure.message}: {last}" if last else failure.message, failure
    # A launcher's message has many lines; all of the output is in the error.
    lines = [line for line in failure.message.splitlines() if line.strip("=- ")]
    reason = f"{failure.type}: {lines[0].strip() if lines else ''}"
    return "failed" if outcome == "failed" else "out_of_memory", reason, failure


def _notes(end: RunEnd, size: int | None, numbers: OutputNumbers) -> list[str]:
    notes = []
    if size is not None and size != end.batch_size:
        notes.append(f"{size} examples per step were seen where {{batch}} was {end.batch_size}")
    notes += [
        f"no line matched --metric {name}"
        for name in sorted(numbers.missing - numbers.not_numbers.keys())
    ]
    notes += [
        f"{len(found)} matches of --metric {name} were no numbers, such as {found[0]!r}: let the "
        "regex's group match the number only"
        for name, found in numbers.not_numbers.items()
    ]
    return notes
