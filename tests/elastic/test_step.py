"""An update in parts equals the update of the whole batch, with and without failures."""

from __future__ import annotations

import gc
import logging
import random
import sys
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from elastic_tasks import (
    OPTIMIZERS,
    Task,
    batch_norm,
    classify,
    convolution,
    elastic,
    equal,
    mlp,
    relative_difference,
    transformer,
    weights,
)
from torch import Tensor, nn

import rightbatch as rb
from rightbatch._elastic.initial_size import find_initial_size
from rightbatch._faults import PLACES, Place
from rightbatch.testing import inject_out_of_memory, limited_memory

EXACT: dict[str, Callable[..., Task]] = {
    "mlp": lambda dtype: mlp(dtype, dropout=0.0),
    "convolution": convolution,
    "transformer": transformer,
}
LINUX = sys.platform.startswith("linux")


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", EXACT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_gradient_of_parts_is_that_of_the_whole(
    task: str, optimizer: str, dtype: torch.dtype, tolerance: float
) -> None:
    model, step, batches = elastic(EXACT[task](dtype), optimizer, micro_batch_size=5)
    _, loss, _ = EXACT[task](dtype)
    for batch in batches:
        model.zero_grad()
        whole_loss = loss(model, batch)
        whole_loss.backward()
        whole = gradients(model)
        report = step(batch)
        assert relative_difference(gradients(model), whole) <= tolerance
        assert report.loss == pytest.approx(float(whole_loss.detach()), rel=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("task", EXACT)
def test_trainings_in_parts_and_in_one_end_at_the_same_weights(task: str, optimizer: str) -> None:
    model, step, batches = elastic(EXACT[task](torch.float64), optimizer, micro_batch_size=4)
    plain, loss, _ = EXACT[task](torch.float64)
    update = OPTIMIZERS[optimizer](plain)
    for batch in batches * 4:
        step(batch)
        update.zero_grad()
        loss(plain, batch).backward()
        update.step()
    assert relative_difference(weights(model), weights(plain)) <= 1e-10


@pytest.mark.parametrize("place", [p for p in PLACES if p != "evaluation"])
@pytest.mark.parametrize("task", [mlp, batch_norm, transformer])
def test_a_failure_anywhere_does_not_change_the_training(
    task: Callable[..., Task], place: Place
) -> None:
    undisturbed, step, batches = elastic(task(), micro_batch_size=5, clip_norm=1.0)
    for batch in batches:
        step(batch)
    model, step, batches = elastic(task(), micro_batch_size=5, clip_norm=1.0)
    with inject_out_of_memory(place, when=3) as injected:
        reports = [step(batch) for batch in batches]
    assert injected.failed == [3]
    events = [event for report in reports for event in report.events if event.place == place]
    assert len(events) == 1
    assert equal(weights(model), weights(undisturbed))
    assert {report.micro_batch_size for report in reports} == {5}


def test_a_size_that_fails_twice_in_a_row_is_halved_and_the_batch_kept() -> None:
    model, step, batches = elastic(mlp(dropout=0.0), micro_batch_size=8)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with inject_out_of_memory("forward", when=(1, 2)):
        report = step(batches[0])
    assert (report.micro_batch_size, report.micro_batches, report.attempts) == (4, 4, 3)
    assert report.count == 16
    assert torch.equal(torch.cat(seen[-4:]), batches[0][0])
    assert [event.micro_batch_size for event in report.events] == [8, 4]


def test_random_numbers_of_a_retry_are_those_of_the_first_attempt() -> None:
    drawn: list[tuple[float, float]] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        drawn.append((random.random(), float(torch.rand(()))))
        return classify(model, batch)

    model, _, batches = mlp()
    step = rb.Elastic(model, OPTIMIZERS["SGD"](model), loss, micro_batch_size=16, check=False)
    with inject_out_of_memory("backward"):
        step(batches[0])
    assert len(drawn) == 2
    assert drawn[0] == drawn[1]


def test_at_one_example_there_is_one_clear_error_and_nothing_is_changed() -> None:
    model, step, batches = elastic(batch_norm(), micro_batch_size=2)
    step(batches[0])
    before, state = weights(model), torch.get_rng_state()
    with (
        inject_out_of_memory("forward", when=range(100)),
        pytest.raises(rb.NothingFitsError, match="at one example"),
    ):
        step(batches[1])
    assert equal(weights(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    step(batches[1])


def test_an_error_other_than_out_of_memory_is_raised() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model, _, batches = mlp()
    step = rb.Elastic(model, OPTIMIZERS["SGD"](model), loss, micro_batch_size=4, check=False)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        step(batches[0])


def test_the_memory_of_a_failed_attempt_is_freed_before_the_next() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        activation = model(batch[0])
        if not kept:
            kept.append(weakref.ref(activation))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert kept[0]() is None
        return nn.functional.cross_entropy(activation, batch[1])

    model, _, batches = mlp()
    gc.disable()
    try:
        step = rb.Elastic(model, OPTIMIZERS["SGD"](model), loss, micro_batch_size=4, check=False)
        step(batches[0])
    finally:
        gc.enable()


def test_evaluation_shrinks_for_its_batch_and_the_micro_batch_of_training_stays() -> None:
    model, step, batches = elastic(mlp(dropout=0.0), micro_batch_size=8)
    step(batches[0])
    model.eval()
    with torch.no_grad():
        expected = float(classify(model, batches[1]))
    with inject_out_of_memory("evaluation", when=1):
        results = step.evaluate(batches[1])
    assert [n for _, n in results] == [8, 4, 4]
    mean = sum(float(loss) * n for loss, n in results) / sum(n for _, n in results)
    assert mean == pytest.approx(expected, rel=1e-12)
    assert step.micro_batch_size == 8


def test_scaler_clipping_schedule_and_hook_act_once_an_update() -> None:
    model, loss, batches = mlp(torch.float32, dropout=0.0)
    optimizer = OPTIMIZERS["SGD"](model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    norms: list[float] = []
    step = rb.Elastic(
        model,
        optimizer,
        loss,
        micro_batch_size=4,
        scaler=scaler,
        clip_norm=0.01,
        scheduler=schedule,
        before_update=lambda: norms.append(float(nn.utils.get_total_norm(gradients(model)))),
    )
    with inject_out_of_memory("backward", when=2):
        report = step(batches[0])
    assert schedule.get_last_lr() == [0.025]
    assert float(nn.utils.get_total_norm(gradients(model))) == pytest.approx(0.01, rel=1e-3)
    assert len(norms) == 1
    assert float(report.gradient_norm) == pytest.approx(norms[0], rel=1e-5)

    plain, _, _ = mlp(torch.float32, dropout=0.0)
    loss(plain, batches[0]).backward()
    assert norms[0] == pytest.approx(float(nn.utils.get_total_norm(gradients(plain))), rel=1e-5)


def test_a_scaler_skips_an_update_with_infinite_gradients_and_continues() -> None:
    model, loss, batches = mlp(torch.float32, dropout=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=3.3e38)
    step = rb.Elastic(
        model,
        OPTIMIZERS["SGD"](model),
        lambda model, batch: 8 * loss(model, batch),
        micro_batch_size=4,
        scaler=scaler,
    )
    before = weights(model)
    while equal(weights(model), before):
        assert scaler.get_scale() > 1
        step(batches[0])
    assert scaler.get_scale() < 3e38


def test_batch_norm_is_reported_as_inexact_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, step, batches = elastic(batch_norm(), micro_batch_size=4)
    with caplog.at_level(logging.WARNING, "rightbatch"):
        reports = [step(batch) for batch in batches]
    assert step.exactness is not None
    assert not step.exactness.is_exact
    assert "BatchNorm" in step.exactness.reason
    assert sum("BatchNorm" in record.message for record in caplog.records) == 1
    assert [event.kind for report in reports for event in report.events] == ["inexact"]


def test_a_loss_that_compares_examples_is_reported_as_inexact() -> None:
    def contrast(model: nn.Module, batch: Any) -> Tensor:
        features = nn.functional.normalize(model(batch[0]))
        return nn.functional.cross_entropy(features @ features.T, torch.arange(len(features)))

    model, _, batches = mlp(dropout=0.0)
    step = rb.Elastic(model, OPTIMIZERS["SGD"](model), contrast, micro_batch_size=4)
    step(batches[0])
    assert step.exactness is not None
    assert not step.exactness.is_exact
    assert "compares examples" in step.exactness.reason


@pytest.mark.parametrize("task", [mlp, convolution, transformer])
def test_exact_tasks_are_reported_as_exact(task: Callable[..., Task]) -> None:
    _, step, batches = elastic(task(), micro_batch_size=4)
    step(batches[0])
    assert step.exactness is not None
    assert step.exactness.is_exact


def test_the_comparison_changes_nothing() -> None:
    model, step, batches = elastic(batch_norm(), micro_batch_size=16)
    plain, other, _ = elastic(batch_norm(), micro_batch_size=16, check=False)
    for batch in batches:
        step(batch)
        other(batch)
    assert equal(weights(model), weights(plain))


def test_auto_uses_the_whole_batch_if_it_fits() -> None:
    model, step, batches = elastic(mlp(dropout=0.0))
    plain, other, _ = elastic(mlp(dropout=0.0), micro_batch_size=16)
    report = step(batches[0])
    other(batches[0])
    assert (report.micro_batch_size, report.micro_batches) == (16, 1)
    assert [event.kind for event in report.events] == ["found"]
    assert equal(weights(model), weights(plain))


def _wide(width: int = 2**18, examples: int = 64) -> tuple[nn.Module, Any, Any]:
    """4 MiB an example and more for its backward pass, hardly any parameters."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = torch.sin(x * self.scale)
            return x

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch.expand(-1, width)).square().mean()

    return Wide(), loss, torch.rand(examples, 1)


def test_auto_tries_one_example_once_if_it_does_not_fit() -> None:
    tried: list[int] = []

    def run(examples: int) -> None:
        tried.append(examples)
        raise torch.OutOfMemoryError("CUDA out of memory")

    optimizer = OPTIMIZERS["SGD"](nn.Linear(2, 1))
    start = find_initial_size(
        run, optimizer, 16, device=torch.device("cpu"), limit=None, margin=0.05
    )
    assert tried == [1]
    assert start.size == 1
    assert "while measuring a micro-batch of 1" in start.reason


def test_auto_tries_no_size_below_the_smallest_that_the_model_takes() -> None:
    tried: list[int] = []

    def run(examples: int) -> None:
        tried.append(examples)
        if examples % 6:
            raise ValueError("not a group of six")

    optimizer = OPTIMIZERS["SGD"](nn.Linear(2, 1))
    start = find_initial_size(
        run, optimizer, 6, device=torch.device("cpu"), limit=None, margin=0.05, least=2
    )
    assert tried == [2, 4, 6]
    assert (start.size, start.multiple) == (6, 6)


@pytest.mark.parametrize("group", [2, 3, 6])
def test_auto_finds_the_sizes_of_a_loss_that_takes_groups(group: int) -> None:
    model = nn.Linear(4, 1)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).view(-1, group).square().mean()

    events: list[rb.Event] = []
    step = rb.Elastic(
        model, OPTIMIZERS["SGD"](model), loss, memory="900MiB", on_event=events.append
    )
    report = step(torch.rand(72, 4))
    assert report.micro_batch_size % group == 0
    # The comparison of parts takes eight examples and four, which are groups of two only.
    unchecked = [event for event in events if "could not be compared" in event.reason]
    assert len(unchecked) == (group != 2)
    assert (step.exactness is None) == (group != 2)


@pytest.mark.parametrize("examples", [7, 8])
def test_batch_norm_over_vectors_takes_odd_sizes(examples: int) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    step = rb.Elastic(model, OPTIMIZERS["SGD"](model), lambda m, b: m(b).square().mean())
    assert step(torch.rand(examples, 4)).micro_batch_size == examples


def test_auto_raises_the_error_of_a_loss_that_takes_no_size() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        raise ValueError("broken")

    model = nn.Linear(4, 1)
    step = rb.Elastic(model, OPTIMIZERS["SGD"](model), loss, check=False)
    with pytest.raises(ValueError, match="broken"):
        step(torch.rand(8, 4))


@pytest.mark.skipif(not LINUX, reason="the limit is enforced on Linux only")
def test_auto_stays_within_the_given_memory() -> None:
    model, loss, batch = _wide()
    step = rb.Elastic(model, OPTIMIZERS["SGD"](model), loss, memory="128MiB")
    report = step(batch)
    assert 2 <= report.micro_batch_size <= 12  # 11 MiB an example; the process has other memory too
    assert report.attempts == 1


@pytest.mark.skipif(not LINUX, reason="the limit is enforced on Linux only")
def test_a_real_limit_of_the_operating_system_is_survived() -> None:
    model, loss, batch = _wide()
    whole, _, _ = _wide()
    plain = OPTIMIZERS["SGD"](whole)
    loss(whole, batch).backward()
    plain.step()
    step = rb.Elastic(model, OPTIMIZERS["SGD"](model), loss, micro_batch_size=64, check=False)
    with limited_memory("200MiB"):
        report = step(batch)
    assert report.micro_batch_size < 64
    assert report.events[0].kind == "out_of_memory"
    assert relative_difference(weights(model), weights(whole)) < 1e-5


def test_batch_norm_gets_no_part_of_one_example() -> None:
    model, step, batches = elastic(batch_norm(), micro_batch_size=4)
    assert len(batches[2][1]) == 13
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    step(batches[2])
    assert seen[-4:] == [4, 3, 3, 3]


def test_parts_with_a_count_of_zero_are_skipped() -> None:
    model, step, _ = elastic(transformer(), micro_batch_size=1)
    tokens = torch.zeros(3, 9, dtype=torch.int64)
    tokens[0] = torch.arange(1, 10)
    report = step(tokens)
    assert report.count == 8
    assert all(torch.isfinite(weight).all() for weight in weights(model))


def test_an_unknown_place_raises_an_error() -> None:
    with pytest.raises(rb.UsageError, match="forward, backward"), inject_out_of_memory("loss"):  # type: ignore[arg-type]
        pass


def test_its_state_continues_in_another_instance() -> None:
    model, step, batches = elastic(mlp(), micro_batch_size=8)
    with inject_out_of_memory("forward", when=(0, 1)):
        step(batches[0])
    other = rb.Elastic(model, OPTIMIZERS["SGD"](model), classify, micro_batch_size=8)
    other.load_state_dict(step.state_dict())
    report = other(batches[1])
    assert (report.step, report.micro_batch_size) == (1, 4)
    assert other.counts == {"out_of_memory": 2}


def test_a_size_that_is_given_is_not_replaced_by_that_of_a_checkpoint() -> None:
    model, step, batches = elastic(mlp(), micro_batch_size=8)
    with inject_out_of_memory("forward", when=(0, 1)):
        step(batches[0])
    for given, expected in ((2, 2), ("auto", 4), (8, 4)):
        other = rb.Elastic(model, OPTIMIZERS["SGD"](model), classify, micro_batch_size=given)
        other.load_state_dict(step.state_dict())
        assert (other.micro_batch_size, other.counts) == (expected, {"out_of_memory": 2})


def test_the_noise_scale_equals_a_plain_loops_although_memory_runs_out() -> None:
    found = []
    for fails in (False, True):
        model, loss, batches = mlp(dropout=0.0)
        noise = rb.NoiseScale(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        step = rb.Elastic(
            model, optimizer, loss, micro_batch_size=3, noise=noise, on_event=lambda event: None
        )
        for index, batch in enumerate(batches[:4]):
            with ExitStack() as stack:
                if fails and index == 2:
                    stack.enter_context(inject_out_of_memory(at="backward", when=1))
                step(batch)
        found.append(noise.observations)
    model, loss, batches = mlp(dropout=0.0)
    noise = rb.NoiseScale(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch in batches[:4]:
        optimizer.zero_grad()
        examples = len(batch[1])
        for part in rb.split_batch(batch, 3):
            n = len(part[1])
            (loss(model, part) * n / examples).backward()
            noise.micro_batch(n=n, weight=n / examples)
        noise.step()
        optimizer.step()
    plain, failed = found
    assert torch.allclose(torch.tensor(plain), torch.tensor(noise.observations), rtol=1e-6)
    assert torch.allclose(torch.tensor(failed[:2]), torch.tensor(plain[:2]), rtol=1e-12)
    assert len(failed) == 4
