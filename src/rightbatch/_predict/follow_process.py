"""A worker that follows a training's step, as its parent asks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rightbatch._worker import BuildError, Worker


@dataclass(frozen=True)
class Followed:
    """`answers` has one mapping a task: `outcome`, and `trace` or `failure`.

    The others are those of `Follower`; `at_least` are bytes that a step needs in any case.
    """

    answers: list[dict[str, Any]]
    how: str = "fake"
    notes: list[str] = field(default_factory=list)
    examples: int | None = None
    at_least: int | None = None


class FollowProcess(Worker):
    """Traces steps without running them on a device; a context manager that ends it."""

    entry = "rightbatch._predict.follow_worker:run"

    def follow(self, tasks: Sequence[Mapping[str, Any]]) -> Followed:
        """Return traces of the step, as `rightbatch._predict.follow` makes them.

        A task has a `batch_size`, and fields of `Variant`. May be asked again and again.
        """
        try:
            return Followed(**self.ask({"follow": [dict(task) for task in tasks]}, "follow"))
        except BuildError as error:
            answer = {"outcome": error.outcome, "failure": vars(error.failure)}
            return Followed([answer] * len(tasks))
