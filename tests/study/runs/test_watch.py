"""What is measured along a run, against a plain loop that measures all of it."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import study_workloads
import torch
from torch import nn

import rightbatch as rb
from rightbatch._study.records import Point, Target
from rightbatch._study.runs import measurements as module
from rightbatch._study.runs.measurements import (
    EVALUATIONS,
    DivergedError,
    Measurements,
)
from rightbatch._study.runs.spacing import SPACING
from rightbatch._training.distributed import Processes
from rightbatch._training.epoch import cuts, order_of
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import LoopPlan
from rightbatch._training.workload_training import WorkloadTraining

CPU = Processes(torch.device("cpu"))


def trained(
    workload: Callable[[], rb.Workload],
    batch_size: int = 8,
    epochs: int = 10,
    target: Target | None = None,
    **options: object,
) -> tuple[list[Point], Measurements, WorkloadLoop]:
    points: list[Point] = []
    measurements = Measurements(target, points.extend, **options)  # type: ignore[arg-type]
    plan = LoopPlan(batch_size=batch_size, micro_batch_size=batch_size, epochs=epochs)
    with WorkloadTraining(workload).loop(plan, CPU, [measurements]) as loop:
        loop.run()
        measurements.flush()
    return points, measurements, loop


def plain_losses(batch_size: int, epochs: int) -> list[float]:
    """Of every step, in the loop that anyone would write."""
    torch.manual_seed(0)
    w = study_workloads.regression()
    losses = []
    for epoch in range(epochs):
        order = order_of(len(w.data), 0, epoch)  # type: ignore[arg-type]
        for start, stop in cuts(w, len(order), batch_size):
            batch = w.collate([w.data[index] for index in order[start:stop]])
            w.optimizer.zero_grad()
            value = w.loss(w.model, batch)
            value.backward()
            w.optimizer.step()
            losses.append(float(value.detach()))
    return losses


def test_points_hold_the_mean_and_the_spread_of_all_losses_since_the_last() -> None:
    points, _, _ = trained(study_workloads.regression)
    losses, before = plain_losses(8, 10), 0
    with_losses = [point for point in points if "loss" in point.values]
    assert with_losses[-1].steps == len(losses) == 120
    for point in with_losses:
        part = losses[before : point.steps]
        assert point.values["loss"] == pytest.approx(statistics.fmean(part), rel=1e-5)
        if len(part) > 1:
            assert point.values["loss_spread"] == pytest.approx(statistics.stdev(part), rel=1e-4)
        before = point.steps


def test_points_say_where_they_were_taken() -> None:
    points, _, _ = trained(study_workloads.regression)
    for point in points:
        assert point.examples == 8 * point.steps
        assert point.epochs == pytest.approx(point.examples / study_workloads.EXAMPLES)
    seconds = [point.seconds for point in points]
    assert seconds == sorted(seconds)
    assert all(abs(point.at - time.time()) < 60 for point in points)


def test_there_is_one_point_at_a_step() -> None:
    """MLflow pairs the values of two metrics by their order: each has to come as often."""
    points, _, _ = trained(study_workloads.measured, epochs=4)
    steps = [point.steps for point in points]
    assert len(set(steps)) == len(steps)
    assert {12, 24, 36, 48} <= {p.steps for p in points if "evaluation_loss" in p.values}


def test_points_lie_some_percent_apart_however_long_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "period", lambda seconds: math.inf)  # none for a slow step
    few, _, _ = trained(study_workloads.regression, batch_size=8, epochs=5)
    many, _, _ = trained(study_workloads.regression, batch_size=8, epochs=50)
    steps = sorted({point.steps for point in many})
    for last, following in itertools.pairwise(steps):
        assert following <= math.ceil(last * SPACING) or following == last + 1
    assert len(many) < len(few) + math.log(10) / math.log(SPACING) + 50 + 10


@pytest.fixture
def cheap_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the machine takes for one, as where it has to wait."""
    monkeypatch.setattr(module, "FREE", math.inf)


@pytest.mark.usefixtures("cheap_evaluations")
def test_evaluations_lie_some_percent_apart_where_they_are_cheap() -> None:
    points, _, _ = trained(study_workloads.regression, epochs=20)
    steps = [point.steps for point in points if "evaluation_loss" in point.values]
    assert steps[0] == 1
    for last, following in itertools.pairwise(steps):
        assert following <= max(last + 1, math.ceil(math.ceil(last * EVALUATIONS) * SPACING))


def test_a_target_ends_the_run_where_an_evaluation_reaches_it() -> None:
    target = Target("evaluation_loss", 0.1)
    points, measurements, loop = trained(study_workloads.regression, epochs=100, target=target)
    values = [p.values["evaluation_loss"] for p in points if "evaluation_loss" in p.values]
    assert all(value > 0.1 for value in values[:-1])
    assert values[-1] <= 0.1
    assert loop.state.steps == points[-1].steps < 1200
    assert "evaluation_loss reached" in measurements.reason


def test_a_metric_of_the_users_own_is_a_target_that_is_reached_from_below() -> None:
    target = Target("norm", 1.5)
    points, measurements, _ = trained(study_workloads.measured, epochs=100, target=target)
    values = [point.values["norm"] for point in points if "norm" in point.values]
    assert values[-1] >= 1.5 > max(values[:-1])
    assert measurements.metrics["norm"] == values[-1]


def test_a_time_ends_the_run() -> None:
    _, measurements, loop = trained(study_workloads.regression, epochs=100_000, seconds=0.05)
    assert loop.state.seconds >= 0.05
    assert loop.state.epoch < 100_000
    assert "the budget of" in measurements.reason


def test_what_is_measured_changes_nothing_of_the_training() -> None:
    _, _, loop = trained(study_workloads.regression)
    torch.manual_seed(0)
    unwatched = study_workloads.regression()
    plan = LoopPlan(batch_size=8, micro_batch_size=8, epochs=10)
    with WorkloadTraining(lambda: unwatched).loop(plan, CPU, []) as alone:
        alone.run()
    for mine, theirs in zip(loop.model.parameters(), unwatched.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(study_workloads.regression, epochs=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("cheap_evaluations")
def test_evaluations_do_not_count_as_training() -> None:
    w, spent = study_workloads.regression(), []

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        began = time.perf_counter()
        time.sleep(0.05)
        spent.append(time.perf_counter() - began)
        return {}

    began = time.perf_counter()
    _, _, loop = trained(lambda: rb.Workload(**vars(w) | {"evaluate": evaluate}), epochs=4)
    took = time.perf_counter() - began
    assert len(spent) > 20
    assert 0 < loop.state.seconds <= took - sum(spent)


def test_a_loss_that_is_no_number_is_told_before_the_run_ends_for_it() -> None:
    with pytest.raises(DivergedError, match=r"the loss (rose from|became)"):
        trained(study_workloads.diverging)


def test_the_noise_scale_is_that_of_the_examples_at_the_weights_of_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the first weights, against the gradients of all examples by themselves."""
    monkeypatch.setattr(module, "LEAST_WINDOW", 1e9)  # it ends after half of the examples
    points, _, _ = trained(study_workloads.regression, batch_size=8)
    found = next(point for point in points if "gradient_variance" in point.values)
    torch.manual_seed(0)
    w = study_workloads.regression()
    order = order_of(len(w.data), 0, 0)[: 8 * found.steps]  # type: ignore[arg-type]
    for start in range(0, len(order), 8):
        w.optimizer.zero_grad()
        w.loss(w.model, w.collate([w.data[i] for i in order[start : start + 8]])).backward()
        w.optimizer.step()
    rows = []
    for example in range(len(w.data)):  # type: ignore[arg-type]
        w.optimizer.zero_grad()
        w.loss(w.model, w.collate([w.data[example]])).backward()
        rows.append(torch.cat([p.grad.flatten() for p in w.model.parameters()]))  # type: ignore[union-attr]
    gradients = torch.stack(rows).double()
    variance = float(gradients.var(dim=0).sum())
    squared = float(gradients.mean(dim=0).square().sum())
    assert found.values["gradient_variance"] == pytest.approx(variance, rel=0.5)
    assert found.values["gradient_squared"] == pytest.approx(squared, rel=0.5)


def test_a_run_of_so_many_steps_ends_with_an_evaluation() -> None:
    points, measurements, loop = trained(study_workloads.measured, epochs=10, steps=31)
    assert loop.state.steps == points[-1].steps == 31
    assert measurements.reason == "31 steps"
    assert "evaluation_loss" in points[-1].values


def test_the_largest_eigenvalue_is_that_of_the_hessian() -> None:
    """Of a linear regression it is that of 2/N XᵀX, wherever the weights are."""
    points, _, _ = trained(study_workloads.regression, sharpness=True, epochs=1)
    w = study_workloads.regression()
    x = torch.stack([w.data[i][0] for i in range(len(w.data))]).double()  # type: ignore[arg-type]
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    expected = float(torch.linalg.eigvalsh(2 * design.T @ design / len(x))[-1])
    found = [point.values for point in points if "sharpness" in point.values]
    assert found
    for values in found:
        assert values["sharpness"] == pytest.approx(expected, rel=0.03)
        assert values["sharpness_times_rate"] == pytest.approx(0.05 * values["sharpness"])
