"""What watching costs a training: the processor time of `Measurements` itself, over that of a step.

Three trainings of the same go on in one process, a step of each in turn and in a shuffled order: a
loop that nobody watches, the same again (A/A), and one that is watched. They are greenlets, so
that all is one thread; torch has one thread, too, so that no other's time is counted. Points are
delivered twice a second of the wall's clock, which here is thrice as often as of the training's.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.elastic.overhead import interval_of_ratio
from benchmarks.study.workload import convolution
from rightbatch._study.records import Point
from rightbatch._study.runs.measurements import Measurements
from rightbatch._study.runs.training import Reporter
from rightbatch._training.distributed import Processes
from rightbatch._training.protocol import LoopPlan, Observer, StepLoss, TrainingLoop
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._worker.wire import send

BATCH = 64
WARM_UP = 3  # steps, that are not counted
_KINDS = ("alone", "again", "watched")
_CPU = Processes(torch.device("cpu"))


class Unwatched(Observer):
    """Does nothing; what it takes counts as little as what `Measurements` takes."""

    counts_as_training = False


class TimedMeasurements(Measurements):
    """Knows what its evaluations and its noise windows took, in processor seconds."""

    def __init__(self, send: Callable[[list[Point]], object]) -> None:
        super().__init__(None, send)
        self.spent: dict[str, list[float]] = {"evaluation": [], "noise": []}

    def _evaluate(self, loop: TrainingLoop) -> dict[str, float]:
        began = time.process_time()
        found = super()._evaluate(loop)
        self.spent["evaluation"].append(time.process_time() - began)
        return found

    def _noise(self, loop: TrainingLoop) -> dict[str, float]:
        began = time.process_time()
        found = super()._noise(loop)
        self.spent["noise"].append(time.process_time() - began)
        return found


class Turn(Observer):
    """Lets a training go on by one step at a time; notes each step, and what is beside it.

    `inner` is the observer whose work is beside the step.
    """

    counts_as_training = False

    def __init__(self, inner: Observer, steps: int, pause: Callable[[], object]) -> None:
        self._inner, self._most, self._pause = inner, steps, pause
        self._began = time.process_time()
        self.steps: list[float] = []
        self.beside: list[float] = []

    def on_start(self, loop: TrainingLoop) -> None:
        self._inner.on_start(loop)
        self._began = time.process_time()

    def on_step(self, loop: TrainingLoop, report: StepLoss) -> None:
        now = time.process_time()
        self.steps.append(now - self._began)
        self._inner.on_step(loop, report)
        self.beside.append(time.process_time() - now)
        if len(self.steps) >= self._most:
            loop.stop("it has its steps")
        self._pause()
        self._began = time.process_time()

    def measure_epoch(self, loop: TrainingLoop) -> Mapping[str, float]:
        now = time.process_time()
        found = self._inner.measure_epoch(loop)
        spent = time.process_time() - now
        self.beside[-1] += spent
        self._began += spent
        return found


def own(steps: int) -> dict[str, Any]:
    """The shares, with all steps; those of evaluations and of noise are apart."""
    from greenlet import getcurrent, greenlet

    with Path(os.devnull).open("wb") as nowhere, _one_thread():
        measurements = TimedMeasurements(Reporter(partial(send, nowhere)).points)
        pause = getcurrent().switch
        turns = {
            kind: Turn(measurements if kind == "watched" else Unwatched(), steps + WARM_UP, pause)
            for kind in _KINDS
        }
        going = [greenlet(partial(_train, turn)) for turn in turns.values()]
        chance = random.Random(0)
        while going:
            chance.shuffle(going)
            for one in going:
                one.switch()
            going = [one for one in going if not one.dead]
    taken = {kind: turn.steps[WARM_UP:] for kind, turn in turns.items()}
    whole = sum(turns["watched"].steps)
    measuring = {kind: sum(values) for kind, values in measurements.spent.items()}
    beside = sum(turns["watched"].beside)
    return {
        "batch_size": BATCH,
        "step_seconds": whole / len(turns["watched"].steps),
        "own_share": (beside - sum(measuring.values())) / whole,
        "unwatched_share": sum(turns["alone"].beside) / sum(turns["alone"].steps),
        "evaluation_share": measuring["evaluation"] / whole,
        "noise_share": measuring["noise"] / whole,
        "step_ratio": interval_of_ratio(taken["watched"], taken["alone"]),
        "same_again": interval_of_ratio(taken["again"], taken["alone"]),
        "total_ratio": sum(taken["watched"]) / sum(taken["alone"]),
        "total_same_again": sum(taken["again"]) / sum(taken["alone"]),
        "steps": {kind: turn.steps for kind, turn in turns.items()},
        "beside": turns["watched"].beside,
        "measuring": measurements.spent,
    }


def _train(turn: Turn) -> None:
    plan = LoopPlan(batch_size=BATCH, micro_batch_size=BATCH, epochs=10**6)
    with WorkloadTraining(convolution).loop(plan, _CPU, [turn]) as loop:
        loop.run()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
