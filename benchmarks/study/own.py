"""What watching costs a training: the processor time of `Watch` itself, over that of a step.

Three trainings of the same go on in one process, a step of each in turn and in a shuffled order: a
`Loop` that nobody watches, the same again (A/A), and one that is watched. They are greenlets, so
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
from rightbatch._study.runs.watch import Watch

from benchmarks.elastic.overhead import interval_of_ratio
from benchmarks.study.workload import convolution
from rightbatch._elastic import StepReport
from rightbatch._study.runs.training import Teller
from rightbatch._training.distributed import Processes
from rightbatch._training.loop import Loop, Watching, built
from rightbatch._worker.wire import send

BATCH = 64
WARM_UP = 3  # steps, that are not counted
_KINDS = ("alone", "again", "watched")
_CPU = Processes(torch.device("cpu"))


class Unwatched:
    """Hears, and does nothing."""

    is_over = False

    def after_step(self, loop: Loop, report: StepReport) -> None:
        pass

    def after_epoch(self, loop: Loop) -> Mapping[str, float]:
        return {}


class TimedWatch(Watch):
    """Knows what its evaluations and its looks at the noise took, in processor seconds."""

    def __init__(self, tell: Callable[..., object]) -> None:
        super().__init__(None, tell)
        self.spent: dict[str, list[float]] = {"evaluation": [], "noise": []}

    def _evaluation(self, loop: Loop) -> dict[str, float]:
        began = time.process_time()
        found = super()._evaluation(loop)
        self.spent["evaluation"].append(time.process_time() - began)
        return found

    def _noise(self, loop: Loop) -> dict[str, float]:
        began = time.process_time()
        found = super()._noise(loop)
        self.spent["noise"].append(time.process_time() - began)
        return found


class Turn:
    """Lets a training go on by one step at a time; notes each step, and what is beside it."""

    def __init__(self, inner: Watching, steps: int, pause: Callable[[], object]) -> None:
        self._inner, self._most, self._pause = inner, steps, pause
        self._began = time.process_time()
        self.steps: list[float] = []
        self.beside: list[float] = []

    @property
    def is_over(self) -> bool:
        return len(self.steps) >= self._most

    def after_step(self, loop: Loop, report: StepReport) -> None:
        now = time.process_time()
        self.steps.append(now - self._began)
        self._inner.after_step(loop, report)
        self.beside.append(time.process_time() - now)
        self._pause()
        self._began = time.process_time()

    def after_epoch(self, loop: Loop) -> Mapping[str, float]:
        now = time.process_time()
        found = self._inner.after_epoch(loop)
        spent = time.process_time() - now
        self.beside[-1] += spent
        self._began += spent
        return found


def own(steps: int) -> dict[str, Any]:
    """The shares, with all steps; those of evaluations and of noise are apart."""
    from greenlet import getcurrent, greenlet

    with Path(os.devnull).open("wb") as nowhere, _one_thread():
        watch = TimedWatch(Teller(partial(send, nowhere)).points)
        pause = getcurrent().switch
        turns = {
            kind: Turn(watch if kind == "watched" else Unwatched(), steps + WARM_UP, pause)
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
    measuring = {kind: sum(values) for kind, values in watch.spent.items()}
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
        "measuring": watch.spent,
    }


def _train(turn: Turn) -> None:
    with built(convolution, 0, _CPU) as workload:
        Loop(
            workload,
            batch_size=BATCH,
            micro_batch_size=BATCH,
            epochs=10**6,
            processes=_CPU,
            watch=turn,
            on_event=lambda event: None,
            progress=False,
        ).run()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
