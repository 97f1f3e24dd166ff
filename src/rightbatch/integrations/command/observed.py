"""What the agents of one run have reported, by process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rightbatch._training.protocol import Betas
from rightbatch._worker.failure import Failure
from rightbatch.integrations.command.template import hide_secrets

_MAX_RECORDS = 20_000


@dataclass
class Rank:
    """A process that trains; most are the only one.

    `steps` are the agent's records and `losses` pairs of step and loss, both thinned out in a long
    training; `noise` are the sampled updates. `epoch` is the number of examples of an epoch, over
    all ranks. `learning_rate` is that of the first optimizer at its start, `betas` are those of
    Adam and its variants, None for SGD; without `knows_betas` the optimizer was not seen.
    """

    pid: int
    rank: int = 0
    world: int = 1
    trains: bool = False
    torch: str = ""
    first_memory: dict[str, Any] = field(default_factory=dict)
    step_count: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    noise: list[dict[str, Any]] = field(default_factory=list)
    no_noise: str = ""
    learning_rate: float | None = None
    betas: Betas = None
    knows_betas: bool = False
    fixed: int = 0
    evaluated: bool = False
    saved: bool = False
    epoch: int | None = None
    reached: bool = False
    closed: bool = False

    @property
    def memory(self) -> dict[str, Any]:
        """The last reading: `device`, `peak`, `charged`, `limit`, …; empty before the model."""
        readings = (step["memory"] for step in reversed(self.steps) if "memory" in step)
        return next(readings, self.first_memory)


class Observed:
    """The state of a run; `add` takes the agents' messages."""

    def __init__(self) -> None:
        self.processes: dict[int, Rank] = {}
        self.failure: Failure | None = None
        self.out_of_memory = False
        self.is_enough = False
        """Whether the parent needs no more of it."""
        self.overwritten: str | None = None
        """The user's file that the run would have changed."""
        self.made: set[str] = set()
        """Files that the run has made."""
        self.agent_errors: list[str] = []

    @property
    def trainers(self) -> list[Rank]:
        """The processes that train, by rank."""
        found = [p for p in self.processes.values() if p.trains or p.steps]
        return sorted(found, key=lambda process: (process.rank, process.pid))

    @property
    def ranks(self) -> list[Rank]:
        """The ranks of one training: of the last one that is distributed, else of the longest.

        A command may train several models, one after the other or side by side.
        """
        trainers = self.trainers
        world = max((each.world for each in trainers), default=1)
        if world == 1:
            return sorted(trainers, key=lambda each: -each.step_count)[:1]
        members = [each for each in self.processes.values() if each in trainers]
        last = [each for each in members if each.world == world][-world:]  # after a restart
        return [each for each in trainers if each in last]

    @property
    def has_all_ranks(self) -> bool:
        """Whether all ranks of the training have been seen."""
        ranks = self.ranks
        return bool(ranks) and len(ranks) >= max(each.world for each in ranks)

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures has to know."""
        notes = [f"the agent stopped observing: {each}" for each in self.agent_errors]
        stepping, ranks = [each for each in self.trainers if each.steps], self.ranks
        if len(stepping) > len(ranks):
            notes.append(
                f"{len(stepping)} processes of the command train without being ranks of one "
                f"training; the figures are those of {'one' if len(ranks) == 1 else len(ranks)}, "
                f"with {ranks[0].step_count} steps"
            )
        return notes

    @property
    def has_torch(self) -> bool:
        """Whether any process has imported torch."""
        return any(process.torch for process in self.processes.values())

    @property
    def is_reached(self) -> bool:
        """Whether all ranks are at their last step; a rank that has ended is not waited for."""
        trainers = self.trainers
        return (
            self.has_all_ranks
            and any(each.reached for each in trainers)
            and all(each.reached or each.closed for each in trainers)
        )

    def add(self, message: dict[str, Any]) -> None:
        """Take in a message."""
        event, pid = message.get("event"), message["pid"]
        if event == "lifeline":
            return
        process = self.processes.setdefault(pid, Rank(pid))
        if "betas" in message and not process.knows_betas:
            process.knows_betas = True
            process.learning_rate = message.get("learning_rate")
            process.betas = tuple(message["betas"]) if message["betas"] else None
        if event == "hello":
            process.closed = False  # a script that executes itself again, or closes its files
            process.rank = message.get("rank", 0)
            process.world = max(process.world, message.get("world_size", 1))
        elif event == "torch":
            process.torch = message["version"]
        elif event == "memory":
            process.first_memory = message["memory"]
        elif event == "training":
            process.trains = True
            process.world = max(process.world, message["world"])
        elif event == "steps":
            process.step_count += len(message["steps"])
            process.steps += message["steps"]
            process.losses += [(step, loss) for step, loss in message["losses"]]
            kept: tuple[list[Any], ...] = (process.steps, process.losses)
            for records in kept:
                if len(records) > _MAX_RECORDS:
                    del records[1 : _MAX_RECORDS // 2 : 2]
            self._cover(process, message)
        elif event == "reached":
            process.reached = True
            self._cover(process, message)
        elif event == "noise":
            process.noise.append(message)
        elif event == "no_noise":
            process.no_noise = message["reason"]
        elif event == "would_overwrite":
            self.overwritten = message["path"]
        elif event == "makes":
            self.made.add(message["path"])
        elif event == "agent_error":
            self.agent_errors.append(message["error"])
        elif event == "error":
            self._fail(message)
        elif event == "closed":
            process.closed = True

    def hide_secrets(self, command: Sequence[str]) -> None:
        """Hide what looks like a secret of a command in its error."""
        if self.failure is not None:
            message, trace = (
                hide_secrets(text, command, os.environ)
                for text in (self.failure.message, self.failure.traceback)
            )
            self.failure = Failure(self.failure.type, message, trace)

    def _cover(self, process: Rank, message: dict[str, Any]) -> None:
        process.evaluated, process.saved = message["evaluated"], message["saved"]
        process.epoch, process.fixed = message["epoch"], message["fixed"]
        process.world = max(process.world, message.get("world", 1))

    def _fail(self, message: dict[str, Any]) -> None:
        """Keep the first error, unless a later one is about memory: the others follow from it."""
        if self.failure is None or (message["out_of_memory"] and not self.out_of_memory):
            self.failure = Failure(message["type"], message["message"], message["traceback"])
            self.out_of_memory = message["out_of_memory"]


def examples_per_step(ranks: Iterable[Rank]) -> int | None:
    """Return the examples of a full step, over all ranks; None if they are unknown."""
    total = 0
    for rank in ranks:
        steps = [step for step in rank.steps if step["examples"]]
        if not steps:
            return None
        if len(steps) > 2 and steps[0].get("by_input"):  # what ran before the training is in it
            steps = steps[1:]
        total += max(step["examples"] for step in steps)
    return total or None
