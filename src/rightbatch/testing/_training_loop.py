"""The tests of `TrainingContract` for loops and their observers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any, ClassVar
from unittest import SkipTest

import pytest
import torch
from torch import Tensor

from rightbatch._device.random_state import random_state
from rightbatch._training.distributed import Processes
from rightbatch._training.noise_windows import noise_windows
from rightbatch._training.protocol import (
    Ability,
    LoopPlan,
    Observer,
    StepLoss,
    Training,
    TrainingLoop,
)
from rightbatch.testing._comparison import copies, equal, same_states, skip_without
from rightbatch.testing._faults import inject_out_of_memory


class LoopTests:
    """Tests of a training's loop."""

    batch_size: ClassVar[int] = 8

    def test_observers_are_called_at_the_boundaries_of_steps(self, training: Training) -> None:
        seen = _Seen()
        with self._loop(training, [seen], epochs=2) as loop:
            at = loop.run()
            per_epoch = ceil(loop.examples / self.batch_size)
        epoch = ["step"] * per_epoch + ["measure", "epoch"]
        assert seen.calls == ["start", *epoch, *epoch, "end"]
        assert (at.steps, at.examples, at.epoch) == (2 * per_epoch, 2 * loop.examples, 2)
        assert at.metrics["mine"] == 1.0
        assert all(torch.isfinite(loss).all() for loss in seen.losses)

    def test_a_loop_trains_and_stops_after_the_step_that_an_observer_names(
        self, training: Training
    ) -> None:
        seen = _Seen(stop_after=2)
        with self._loop(training, [seen], epochs=100) as loop:
            at = loop.run()
            assert not equal(seen.weights, loop.model), "two steps left the weights as they were"
        assert (at.steps, seen.calls.count("step")) == (2, 2)
        assert seen.calls[-1] == "end"

    def test_factors_scale_the_learning_rate(self, training: Training) -> None:
        rates = []
        for factor in (1.0, 0.5):
            seen = _Seen(stop_after=1)
            with self._loop(training, [seen], factors=lambda betas, f=factor: (f, f)) as loop:
                loop.run()
                rates.append(loop.learning_rate)
        assert rates[0] is not None
        assert rates[1] == pytest.approx(0.5 * rates[0])

    def test_noise_windows_leave_the_training_as_it_is(self, training: Training) -> None:
        windows = _Windows()
        with self._loop(training, [windows]) as loop:
            loop.run()
        assert windows.pairs, "no window had a value"
        assert windows.is_unchanged, "a window changed weights or random states"

    def test_an_evaluation_in_a_loop_leaves_weights_and_random_states(
        self, training: Training
    ) -> None:
        windows = _Windows(evaluates=True)
        with self._loop(training, [windows]) as loop:
            if not loop.is_evaluated:
                raise SkipTest("the training has no evaluation")
            loop.run()
        assert windows.metrics
        assert windows.is_unchanged, "an evaluation changed weights or random states"

    def test_memory_that_runs_out_in_a_step_is_survived_and_observed(
        self, training: Training
    ) -> None:
        seen = _Seen(stop_after=3)
        with (
            self._loop(training, [seen], micro_batch_size=self.batch_size) as loop,
            inject_out_of_memory("backward", (0, 1)),
        ):
            at = loop.run()
        assert at.steps == 3
        assert at.out_of_memory_events >= 1
        assert "out_of_memory" in seen.events
        assert at.examples == 3 * self.batch_size

    @contextmanager
    def _loop(
        self, training: Training, observers: list[Observer], epochs: int = 1, **fields: Any
    ) -> Iterator[TrainingLoop]:
        skip_without(training, Ability.LOOP)
        plan = LoopPlan(
            **{"batch_size": self.batch_size, "micro_batch_size": 4, "epochs": epochs} | fields
        )
        with training.loop(plan, Processes(torch.device("cpu")), observers) as loop:
            yield loop


class _Seen(Observer):
    """Records the calls; stops the loop after `stop_after` steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[str] = []
        self.losses: list[Tensor] = []
        self.events: list[str] = []
        self.weights: list[Tensor] = []
        self._stop_after = stop_after

    def on_start(self, loop: TrainingLoop) -> None:
        self.calls.append("start")
        self.weights = copies(loop.model)

    def on_step(self, loop: TrainingLoop, report: StepLoss) -> None:
        self.calls.append("step")
        self.losses.append(report.mean_loss.detach().clone())
        if loop.state.steps == self._stop_after:
            loop.stop("end of the test")

    def measure_epoch(self, loop: TrainingLoop) -> dict[str, float]:
        self.calls.append("measure")
        return {"mine": 1.0}

    def on_epoch(self, loop: TrainingLoop) -> None:
        self.calls.append("epoch")

    def on_event(self, loop: TrainingLoop, event: Any) -> None:
        self.events.append(event.kind)

    def on_end(self, loop: TrainingLoop) -> None:
        self.calls.append("end")


class _Windows(Observer):
    """Measures after the first step, and checks that weights and random states are unchanged."""

    def __init__(self, *, evaluates: bool = False) -> None:
        self._evaluates = evaluates
        self.pairs: tuple[Any, ...] = ()
        self.metrics: dict[str, float] = {}
        self.is_unchanged = False

    def on_step(self, loop: TrainingLoop, report: StepLoss) -> None:
        weights, before = copies(loop.model), random_state(loop.device)
        if self._evaluates:
            self.metrics = loop.evaluate()
        else:
            loop.model.zero_grad()
            self.pairs = noise_windows(loop, 0.2).at_weights
        after = random_state(loop.device)
        self.is_unchanged = equal(weights, loop.model) and same_states(before, after)
        loop.stop("measured")
