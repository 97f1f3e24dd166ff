"""The optimizer's step is atomic: a step that fails half way is undone and completed later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from elastic_tasks import classify, elastic, equal, mlp, weights
from torch import Tensor, nn

import rightbatch as rb
from rightbatch._elastic import undoable_update as updates
from rightbatch._elastic.undoable_update import UndoableUpdate
from rightbatch.testing import inject_out_of_memory

BUILT_IN: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "AdamW, amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "Rprop": lambda p: torch.optim.Rprop(p),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
}


class FailsHalfWay(torch.optim.AdamW):
    """Runs out of memory when half of its parameters are updated; not torch's own class."""

    failures = 0

    def step(self, closure: Any = None) -> Any:
        if self.failures:
            self.failures -= 1
            groups = [dict(group) for group in self.param_groups]
            half = groups[0]["params"][: len(groups[0]["params"]) // 2]
            whole, self.param_groups[0]["params"] = self.param_groups[0]["params"], half
            super().step()
            self.param_groups[0]["params"] = whole
            self.param_groups[0]["lr"] = 7.0
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().step(closure)


def trained(make: Callable[[Any], torch.optim.Optimizer], **faults: Any) -> nn.Module:
    model, loss, batches = mlp(dropout=0.0)
    optimizer = make(model.parameters())
    step = rb.Elastic(model, optimizer, loss, micro_batch_size=8)
    if faults:
        with inject_out_of_memory(**faults):
            for batch in batches:
                step(batch)
    else:
        for batch in batches:
            step(batch)
    return model


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(updates.CHUNK_BYTES, "cpu", 400)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("name", BUILT_IN)
def test_chunks_make_the_optimizers_own_update(name: str) -> None:
    model, loss, batches = mlp(dropout=0.0)
    plain = BUILT_IN[name](model.parameters())
    for batch in batches:
        plain.zero_grad()
        for part in rb.split_batch(batch, 8):
            (loss(model, part) * (len(part[1]) / len(batch[1]))).backward()
        plain.step()
    assert equal(weights(trained(BUILT_IN[name])), weights(model))


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("when", [0, 2])
def test_a_failure_half_way_is_undone_and_completed(name: str, when: int) -> None:
    disturbed = trained(BUILT_IN[name], at="optimizer", when=when)
    assert equal(weights(disturbed), weights(trained(BUILT_IN[name])))


def test_any_other_optimizer_is_restored_as_one_chunk_with_its_options() -> None:
    model, loss, batches = mlp(dropout=0.0)
    optimizer = FailsHalfWay(model.parameters(), lr=0.01)
    step = rb.Elastic(model, optimizer, loss, micro_batch_size=8)
    step(batches[0])
    optimizer.failures = 1
    report = step(batches[1])
    assert [event.kind for event in report.events] == ["rolled_back"]
    assert optimizer.param_groups[0]["lr"] == 0.01

    plain, other, _ = elastic(mlp(dropout=0.0), micro_batch_size=8)
    del other
    undisturbed = FailsHalfWay(plain.parameters(), lr=0.01)
    again = rb.Elastic(plain, undisturbed, loss, micro_batch_size=8)
    again(batches[0])
    again(batches[1])
    assert equal(weights(model), weights(plain))


def test_an_interrupted_update_is_completed_by_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(updates, "PAUSES", (0.0,))
    model, loss, batches = mlp(dropout=0.0)
    optimizer = FailsHalfWay(model.parameters(), lr=0.01)
    step = rb.Elastic(model, optimizer, loss, micro_batch_size=8)
    before = weights(model)
    optimizer.failures = 2
    with pytest.raises(rb.NothingFitsError, match="not updated yet"):
        step(batches[0])
    assert equal(weights(model), before)
    step(batches[1])

    plain, _, _ = mlp(dropout=0.0)
    undisturbed = FailsHalfWay(plain.parameters(), lr=0.01)
    again = rb.Elastic(plain, undisturbed, loss, micro_batch_size=8)
    again(batches[0])
    again(batches[1])
    assert equal(weights(model), weights(plain))


def test_another_error_of_an_optimizer_is_raised_and_nothing_is_changed() -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            super().step()
            raise ValueError("a bug")

    model, _, batches = mlp(dropout=0.0)
    step = rb.Elastic(model, Broken(model.parameters(), lr=0.1), classify, micro_batch_size=8)
    before = weights(model)
    with pytest.raises(ValueError, match="a bug"):
        step(batches[0])
    assert equal(weights(model), before)


def test_the_optimizers_step_is_restored_afterwards() -> None:
    model, loss, batches = mlp(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rb.Elastic(model, optimizer, loss, micro_batch_size=8)(batches[0])
    assert "step" not in vars(optimizer)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    ],
)
def test_a_fused_step_is_retried_without_copies(
    make: Callable[[Any], torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(when: tuple[int, ...]) -> tuple[list[Tensor], list[str]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        optimizer, undone = make(model.parameters()), []
        update = UndoableUpdate(optimizer, torch.device("cpu"), undone.append)
        with inject_out_of_memory("optimizer", when):
            for step in range(3):
                model.zero_grad()
                model(torch.full((2, 4), float(step))).square().sum().backward()
                with update.atomic():
                    optimizer.step()
        return [p.detach() for p in model.parameters()], undone

    monkeypatch.setattr("rightbatch._elastic.undoable_update._ChunkCopy", None)  # none is made
    undisturbed, nothing = ends(())
    disturbed, undone = ends((1, 2))
    assert not nothing and len(undone) == 2 and "changed nothing" in undone[0]
    assert all(torch.equal(a, b) for a, b in zip(undisturbed, disturbed, strict=True))
    with pytest.raises(rb.NothingFitsError, match="weights are unchanged"):
        ends((0, 1, 2))


def test_a_fused_step_of_several_groups_is_not_repeated_where_it_was_done() -> None:
    """torch allocates the state of one group after it has updated another."""

    def ends(fails: bool) -> list[Tensor]:
        first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW(
            [{"params": [first]}, {"params": [second], "weight_decay": 0.0}], lr=0.1, fused=True
        )
        update = UndoableUpdate(optimizer, torch.device("cpu"), lambda reason: None)
        state, left = optimizer.state, [1]

        class Failing(dict):  # type: ignore[type-arg]
            def __setitem__(self, key: str, value: Any) -> None:
                if fails and key == "exp_avg_sq" and left[0]:
                    left[0] -= 1
                    raise torch.OutOfMemoryError("no room")
                super().__setitem__(key, value)

        state[second] = Failing()
        for _ in range(2):
            first.grad, second.grad = torch.ones(3), torch.ones(3)
            with update.atomic():
                optimizer.step()
        return [first.detach(), second.detach()]

    assert all(torch.equal(a, b) for a, b in zip(ends(False), ends(True), strict=True))


@pytest.mark.parametrize("has_schedule", [True, False])
def test_a_schedule_may_be_made_while_the_step_is_replaced(has_schedule: bool) -> None:
    """Ultralytics makes one after each epoch with `time=`; ultralytics/ultralytics#7054."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    if has_schedule:
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    update = UndoableUpdate(optimizer, torch.device("cpu"), lambda reason: None)
    parameter.grad = torch.ones(3)
    with update.atomic():
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        optimizer.step()
        schedule.step()  # a warning is an error: the schedule has seen the step
    first = parameter.detach().clone()
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()
    schedule.step()
    with update.atomic():
        optimizer.step()
    assert torch.allclose(first - parameter, torch.full((3,), rate * 1.5))
