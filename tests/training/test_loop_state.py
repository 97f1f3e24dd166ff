"""Schedules without a counter, and models that keep a state in attributes, in a loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, ExponentialLR, LinearLR

from rightbatch import Workload
from rightbatch._training.distributed import Processes
from rightbatch._training.noise_windows import noise_windows
from rightbatch._training.protocol import LoopPlan, Observer
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._tune.branches import BranchPlan, train_branches

ALONE = Processes(torch.device("cpu"))


class Remembering(nn.Module):
    """Its hidden state has the size of the last batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, hidden = self.rnn(x, self.hidden)
        self.hidden = hidden.detach()
        return self.head(out[:, -1])


def workload(**fields: Any) -> Workload:
    torch.manual_seed(0)
    model = Remembering()
    return Workload(
        model=model,
        loss=lambda model, batch: model(batch).square().mean(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data=[torch.randn(5, 3) for _ in range(48)],  # type: ignore[arg-type]
        drop_last=True,
        **fields,
    )


def chained(optimizer: Any, steps: int) -> Any:
    return ChainedScheduler(
        [LinearLR(optimizer, 0.1, total_iters=3), ExponentialLR(optimizer, 0.9)]
    )


class Measuring(Observer):
    """Measures the noise scale between two updates."""

    def on_step(self, loop: Any, report: Any) -> None:
        if loop.state.steps == 2:
            hidden = loop.model.hidden
            assert noise_windows(loop, 0.01).at_weights
            assert loop.model.hidden is hidden


def test_measurements_leave_a_hidden_state_to_the_training() -> None:
    """Their parts have other sizes, which the state of the training does not fit to."""
    plan = LoopPlan(batch_size=12, micro_batch_size=12, epochs=1)
    with WorkloadTraining(workload).loop(plan, ALONE, [Measuring()]) as loop:
        assert loop.run().steps == 4
        measured, hidden = loop.state.metrics, loop.model.hidden
        branches = train_branches(loop, [BranchPlan(n, n, 1.0, 1.0) for n in (8, 16)], 32)
        assert [branch.batch_size for branch in branches] == [8, 16]
        assert loop.model.hidden is hidden
    with WorkloadTraining(workload).loop(plan, ALONE, []) as loop:
        assert loop.run().metrics == measured


@pytest.mark.parametrize("stop_at", [2, 5])
def test_a_schedule_that_counts_no_steps_is_stepped_and_resumed(stop_at: int) -> None:
    """A ChainedScheduler has no `last_epoch`."""

    class Rates(Observer):
        def __init__(self, stop_at: int) -> None:
            self.found: list[float] = []
            self.stop_at = stop_at

        def on_step(self, loop: Any, report: Any) -> None:
            self.found.append(loop.optimizer.param_groups[0]["lr"])
            if loop.state.steps == self.stop_at:
                loop.stop("enough")

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, wanted = chained(optimizer, 8), []
    for step in range(8):
        optimizer.step()
        if step < 7:  # never beyond the end, where some schedules raise
            schedule.step()
        wanted.append(optimizer.param_groups[0]["lr"])
    plan = LoopPlan(batch_size=12, micro_batch_size=12, epochs=2, schedule_epochs=2)
    training = WorkloadTraining(lambda: workload(scheduler=chained))
    first, second = Rates(stop_at), Rates(8)
    with training.loop(plan, ALONE, [first]) as loop:
        loop.run()
        state = loop.state_dict()
    with training.loop(plan, ALONE, [second]) as loop:
        loop.load_state_dict(state)
        loop.run()
    assert first.found + second.found == pytest.approx(wanted)
