"""A pilot measures the noise scale of the closed form, stops at its target, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import tune_workloads as made
from torch import nn

import rightbatch as rb
from rightbatch._noise import WeightAverage, estimate_from, measure_noise, observe_parts
from rightbatch._training.distributed import Processes
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._tune.branches import BranchPlan, train_branches
from rightbatch._tune.pilot import WINDOWS, Pilot, PilotPlan, PilotReport, is_better

Factory = Callable[[], rb.Workload]


class Clock:
    """Half a millisecond passes whenever it is read, which is once or more for each step or part.

    What a pilot can do in its seconds is then the same on every machine, however busy it is.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.0005
        return self.now


@pytest.fixture(autouse=True)
def _steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in ("_tune.pilot", "_noise.window", "_training.observers"):
        monkeypatch.setattr(f"rightbatch.{module}.time", clock)
    torch.manual_seed(0)  # parts of their own draw from it, after whatever other tests drew


@contextmanager
def piloted(
    factory: Factory, seconds: float = 2.0, **fields: Any
) -> Iterator[tuple[WorkloadLoop, PilotReport]]:
    """The loop where the pilot has left it, and what was measured."""
    fields = {"batch_size": 16, "micro_batch_size": 16} | fields
    plan = PilotPlan(seconds=seconds, **fields)
    pilot, cpu = Pilot(plan), Processes(torch.device("cpu"))
    with WorkloadTraining(factory).loop(plan.loop_plan(), cpu, [pilot]) as loop:
        loop.run()
        yield loop, pilot.report(loop)


def report_of(factory: Factory, seconds: float = 2.0, **fields: Any) -> PilotReport:
    with piloted(factory, seconds, **fields) as (_, report):
        return report


def test_the_noise_scale_is_that_of_the_closed_form() -> None:
    report = report_of(made.line)
    found = estimate_from(report.noise.at_weights)
    assert len(report.noise.at_weights) == len(report.noise.at_average) == WINDOWS
    assert estimate_from(report.noise.at_average).value == pytest.approx(found.value, rel=0.2)
    assert found is not None and found.value is not None
    assert found.value == pytest.approx(made.LINE_NOISE_SCALE, rel=0.15)


def test_a_pilot_trains_and_says_so() -> None:
    report = report_of(made.workload)
    assert report.losses[-1][1] < 0.7 * report.losses[20][1]
    assert report.examples == 16 * report.steps == report.losses[-1][0]
    assert report.reached is None
    assert report.facts.optimizer == "SGD" and report.facts.betas is None
    assert not report.facts.batch_norm


@pytest.mark.parametrize("target", [("loss", 0.4), ("accuracy", 0.85)])
def test_it_ends_when_its_target_is_reached(target: tuple[str, float]) -> None:
    report = report_of(made.workload, seconds=16.0, target=target)
    assert report.reached is not None
    assert 0 < report.reached.seconds < 8, "else the windows began for want of time"
    assert len({round(gradient, 9) for gradient, _ in report.noise.at_weights}) == WINDOWS
    assert report.reached.steps <= report.steps
    assert len(report.noise.at_weights) == WINDOWS


def test_an_unknown_target_is_answered_with_the_known_ones() -> None:
    with pytest.raises(rb.UsageError, match="a target is loss, or one of accuracy"):
        report_of(made.workload, target=("mAP", 0.5))


def test_a_loss_that_is_no_number_is_the_workloads_failure() -> None:
    with pytest.raises(FloatingPointError, match="--base-batch"):
        report_of(made.exploding)


def test_branches_start_where_the_pilot_ended_and_leave_it_there() -> None:
    plans = [
        BranchPlan(size, 16, batch_factor=size / 16, learning_rate_factor=factor)
        for size, factor in ((16, 1.0), (64, 4.0), (16, 0.0))
    ]
    with piloted(made.workload, seconds=1.0) as (loop, _):
        before = {key: value.clone() for key, value in loop.model.state_dict().items()}
        small, large, still = train_branches(loop, plans, 1024)
        after = loop.model.state_dict()
        assert all(torch.equal(before[key], value) for key, value in after.items())
        assert small.examples >= 1024 and large.examples >= 1024
        assert small.loss != large.loss
        again = train_branches(loop, plans, 1024)
        assert [branch.loss for branch in again] == [small.loss, large.loss, still.loss]


def test_a_window_leaves_buffers_and_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def parts() -> Any:
        while True:
            x = torch.randn(8, 4)
            yield (lambda x=x: model(x).square().mean()), 8, 8.0

    found = observe_parts(model, parts(), population=1000, seconds=0.05)
    assert len(found) == 1
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_average_of_weights_is_in_place_only_while_it_is_looked_at() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model)
    with torch.no_grad():
        for value in range(1, 5):
            model.weight.fill_(value)
            average.update()
    pointer = model.weight.data_ptr()
    with average.applied():
        assert float(model.weight.detach()) == pytest.approx(2.5), "of few steps the plain mean"
    assert float(model.weight.detach()) == 4 and model.weight.data_ptr() == pointer


def test_swings_that_lead_nowhere_count_at_the_weights_and_not_at_their_average() -> None:
    """A steep direction that the weights jump across, a flat one with the same slope throughout."""
    model = nn.Linear(2, 1, bias=False)
    average = WeightAverage(model)
    for step in range(40):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0 if step % 2 else -1.0, 0.0]]))
        average.update()

    def parts() -> Any:
        while True:
            x = torch.randn(16, 2)

            def loss(x: Any = x) -> Any:
                steep, flat = model.weight[0]
                return 5 * steep**2 + flat + (x @ model.weight.T).mean()

            yield loss, 16, 16.0

    seen = measure_noise(model, average, parts, None, 0.2)
    (at_weights, _), (at_average, _) = seen.at_weights[0], seen.at_average[0]
    assert at_weights == pytest.approx(101, rel=0.1)
    assert at_average < 3


def test_losses_are_better_when_they_fall_and_other_metrics_when_they_rise() -> None:
    assert is_better("loss", 0.4, 0.45) and not is_better("loss", 0.5, 0.45)
    assert is_better("mAP50", 0.8, 0.7) and not is_better("mAP50", 0.6, 0.7)
    assert is_better("val_error", 0.1, 0.2)


def test_a_schedule_is_not_stepped_beyond_its_end() -> None:
    def scheduled() -> rb.Workload:
        return replace(
            made.workload(),
            scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.1, total_steps=steps
            ),
        )

    report = report_of(scheduled, epochs=1)
    assert report.steps > made.EXAMPLES / 16


def test_a_window_of_a_small_data_set_draws_no_example_twice() -> None:
    with piloted(lambda: made.line(examples=20), seconds=0.5) as (loop, report):
        found = estimate_from(report.noise.at_weights)
        x, y = (torch.stack(column) for column in zip(*loop.workload.data, strict=True))
        each = x * (x @ loop.model.weight.detach() - y).unsqueeze(1)
    assert found is not None
    exact = each.square().sum() / 20 - each.mean(dim=0).square().sum()
    assert found.noise == pytest.approx(float(exact), rel=0.25)
