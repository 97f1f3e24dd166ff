"""The points of a study's run, from the agents' messages and the numbers in the command's output.

Steps come in messages up to 0.2 s apart, and on CUDA losses some messages later. A point waits for
both, so that the losses and the examples of all ranks are in it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rightbatch._study.records import Point
from rightbatch._study.runs.spacing import next_point, period
from rightbatch.integrations.command.observed import Observed, Rank

_PATIENCE = 100  # steps without a loss, after which none is waited for: agents send 50 at a time


class RunPoints:
    """Makes points of a run; `state` is the last one, with the last value of each metric.

    `seconds` are those of the steps, without the start of the command (the first step counts as
    much as the second one, at most), but with its evaluations. The loss is the mean over the
    micro-batches and ranks of a step, and over the steps since the point before. Where the agents
    did not see the size of a batch, it is taken to be `batch_size`.
    """

    def __init__(self, batch_size: int, *, logs_loss: bool = True) -> None:
        self._batch_size, self._logs_loss = batch_size, logs_loss
        self._ranks: dict[int, _RankSteps] = {}
        self._members: list[int] = []
        self._numbers: deque[tuple[float, str, float]] = deque()
        self._losses: list[float] = []
        self._noise: dict[int, dict[int, dict[str, Any]]] = {}  # by update and rank
        self._next, self._pointed, self._pointed_at = 1, 0, 0.0
        self._clock = time.time() - time.monotonic()
        self.state = Point(0, 0, 0.0, 0.0, {}, 0.0)

    def add(self, message: dict[str, Any]) -> None:
        """Take in an agent's message."""
        event, pid = message.get("event"), message["pid"]
        if event == "steps":
            self._ranks.setdefault(pid, _RankSteps()).add(message)
        elif event == "noise":
            self._noise.setdefault(message["update"], {})[pid] = message

    def number(self, name: str, value: float) -> None:
        """Take in a number that the command has just printed."""
        self._numbers.append((time.monotonic(), name, value))

    def take(self, observed: Observed, is_over: bool = False) -> Iterator[Point]:
        """Yield the points that are due; at the end of the run also what was waited for."""
        members = self._find_members(observed, is_over)
        while members and self._is_complete(members, is_over):
            yield from self._printed(members[0])
            yield from self._step(members)
        if is_over:
            if self._losses or self.state.steps > self._pointed:
                yield self._point(self._mean_loss())
            if values := {name: value for _, name, value in self._numbers}:
                self._numbers.clear()
                yield self._point(values)

    def _find_members(self, observed: Observed, is_over: bool) -> list[Rank]:
        """Return the ranks of the training that is followed, once all have made a step.

        A command may train several models, one after the other; the first is followed.
        """
        stepping = [rank for rank in observed.trainers if rank.pid in self._ranks]
        if not self._members and stepping:
            world = max(rank.world for rank in stepping)
            if world == 1:
                self._members = [stepping[0].pid]
            elif len(stepping) >= world or is_over:
                self._members = [rank.pid for rank in stepping]
        return [rank for rank in stepping if rank.pid in self._members]

    def _is_complete(self, members: list[Rank], is_over: bool) -> bool:
        """Whether everything about the next step is known, or will not come any more."""
        number = self.state.steps + 1
        first = self._ranks[members[0].pid]
        if number > first.count:
            return False
        if is_over:
            return True
        if number == 1 and first.count < 2:  # the first step is measured by the second one
            return False
        return all(
            rank.closed or self._ranks[rank.pid].knows(number, self._logs_loss) for rank in members
        )

    def _printed(self, leader: Rank) -> Iterator[Point]:
        """Yield a point of what was printed before the next step ended."""
        ends_at = self._ranks[leader.pid].steps[0].ended_at
        values = {}
        while self._numbers and self._numbers[0][0] < ends_at:
            _, name, value = self._numbers.popleft()
            values[name] = value
        if values:
            yield self._point(values)

    def _step(self, members: list[Rank]) -> Iterator[Point]:
        number = self.state.steps + 1
        steps = [self._ranks[rank.pid].take(number) for rank in members]
        known = [step for step in steps if step is not None]
        first = known[0]
        seconds = first.seconds
        if number == 1 and (second := self._ranks[members[0].pid].steps):
            seconds = min(seconds, second[0].seconds)
        sizes = [step.examples or self._batch_size / len(members) for step in known]
        losses = [statistics.fmean(step.losses) for step in known if step.losses]
        if losses and self._logs_loss:
            self._losses.append(statistics.fmean(losses))
        examples = self.state.examples + sum(sizes)
        epoch = members[0].epoch
        at = self._clock + first.ended_at
        seconds += self.state.seconds
        epochs = examples / epoch if epoch else 0.0
        self.state = Point(number, examples, seconds, epochs, self.state.values, at)
        found = self._noise.pop(number - 1, {})
        values = _noise_values([found[rank.pid] for rank in members if rank.pid in found])
        if number >= self._next or seconds - self._pointed_at >= period(seconds):
            self._next, self._pointed_at = next_point(number), seconds
            self._pointed = number
            yield self._point(values | self._mean_loss())
        elif values:
            yield self._point(values)

    def _mean_loss(self) -> dict[str, float]:
        losses, self._losses = self._losses, []
        if not losses:
            return {}
        found = {"loss": statistics.fmean(losses)}
        if len(losses) > 1 and all(map(math.isfinite, losses)):
            found["loss_spread"] = statistics.stdev(losses)
        return found

    def _point(self, values: dict[str, float]) -> Point:
        """Return a point of the last step, and keep its values."""
        fields = vars(self.state)
        self.state = Point(**fields | {"values": {**self.state.values, **values}})
        return Point(**fields | {"values": values})


def _noise_values(sampled: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return |G|² and tr(Σ) from an update that was sampled on all ranks.

    With gradients gᵢ of m parts of nᵢ examples, E|gᵢ|² = |G|² + tr(Σ)/nᵢ and E|Σgᵢ/m|² = |G|² +
    tr(Σ) Σ(1/nᵢ)/m² (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1). The parts of a rank
    sum up to its gradient: a loop that accumulates is assumed to divide its losses.
    """
    parts = [(float(square), size) for each in sampled for square, size in each["parts"]]
    count = len(parts)
    if count < 2 or not all(size for _, size in parts):
        return {}
    factor = (count / len(sampled)) ** 2  # from a part's share of the gradient to its own mean
    single = factor * sum(square for square, _ in parts) / count
    whole = float(sampled[0]["whole"])
    spread = sum(1 / size for _, size in parts) / count
    variance = (single - whole) / (spread - spread / count)
    squared = single - variance * spread
    values = {"gradient_squared": squared, "gradient_variance": variance}
    if squared > 0:  # else the gradient is lost in noise: the noise scale is unknown
        values["noise_scale"] = variance / squared
    return values


@dataclass
class _Step:
    """A step of one rank; `ended_at` is in `time.monotonic`."""

    seconds: float
    examples: int | None
    ended_at: float
    losses: list[float] = field(default_factory=list)


class _RankSteps:
    """The steps of one rank that are in no point yet."""

    def __init__(self) -> None:
        self.steps: deque[_Step] = deque()
        self.count = 0
        self._with_losses = 0  # steps up to which the losses are known

    def add(self, message: dict[str, Any]) -> None:
        """Take in a message with steps and losses."""
        for step in message["steps"]:
            ended_at = float(step["ended_at"])
            self.steps.append(_Step(float(step["seconds"]), step["examples"], ended_at))
        self.count += len(message["steps"])
        for index, loss in message["losses"]:  # the index is the number of steps before
            place = int(index) - (self.count - len(self.steps))
            self._with_losses = max(self._with_losses, int(index) + 1)
            if 0 <= place < len(self.steps):
                self.steps[place].losses.append(float(loss))

    def knows(self, number: int, needs_loss: bool) -> bool:
        """Whether the step of that number, and its loss if there will be one, has arrived."""
        if number > self.count:
            return False
        return not needs_loss or number <= self._with_losses or number + _PATIENCE <= self.count

    def take(self, number: int) -> _Step | None:
        """Remove and return a step; None if the rank ended before it."""
        return self.steps.popleft() if number <= self.count and self.steps else None
