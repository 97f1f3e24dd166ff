"""A trial: one run of a training that starts as a process of its own, at one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rightbatch._training.watched import Watched
from rightbatch._worker.failure import Failure, Outcome


@dataclass(frozen=True)
class TrialRequest:
    """How long a trial runs, and what it may use.

    It ends after `steps` steps; None: when it `is_enough`, or when it ends itself. Only then its
    gradients are observed as well, for `Trial.watched`. `memory` (bytes) less `margin` is enforced
    where the platform can; None is all that is free. With `exact`, small measurements on the CPU
    are not distorted by what malloc holds (`rightbatch._worker.dialogue.EXACT_MALLOC`).
    """

    steps: int | None
    memory: int | None = None
    margin: float = 0.0
    exact: bool = False
    seed: int = 0
    is_enough: Callable[[Watched], bool] = lambda watched: False


@dataclass(frozen=True)
class Trial:
    """What one trial measured.

    `argument` is the size that was asked for, `examples_per_step` the size that was seen, over all
    ranks; None if it is unknown. `charges` are the bytes charged against the limit after each step,
    `step_seconds` and `waited_seconds` the durations of the steps and their part that waited for
    data. `limit_bytes` and `ceiling_bytes` are those of the device. `largest_argument` is the
    largest size that makes sense, where the trial has shown one. `watched` is the trial as a run
    that is watched.
    """

    argument: int
    outcome: Outcome
    seconds: float
    device: str = "cpu"
    peak_bytes: int | None = None
    live_bytes: int | None = None
    charges: tuple[int, ...] = ()
    step_seconds: tuple[float, ...] = ()
    waited_seconds: tuple[float, ...] = ()
    examples_per_step: int | None = None
    ranks: int = 1
    limit_bytes: int = 0
    ceiling_bytes: int = 0
    enforced: bool = False
    examples: int | None = None
    largest_argument: int | None = None
    evaluated: bool = False
    saved: bool = False
    notes: tuple[str, ...] = ()
    detail: Mapping[str, int] = field(default_factory=dict)
    failure: Failure | None = None
    watched: Watched | None = field(default=None, repr=False)
