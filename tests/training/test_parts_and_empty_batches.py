"""Parts of measurements are sizes that the workload takes; batches that are None are left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from rightbatch import UsageError, Workload
from rightbatch._training.distributed import Processes
from rightbatch._training.protocol import LoopPlan
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._tune.branches import unseen_loss
from rightbatch._workload.sizes import Sizes

ALONE = Processes(torch.device("cpu"))


def readable(items: list[Any]) -> Any:
    kept = [item for item in items if item is not None]
    return default_collate(kept) if kept else None


def workload(data: list[Any], collate: Any = readable) -> Workload:
    model = nn.Linear(3, 1)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Workload(model, loss, optimizer, data, collate=collate)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "most", "size"),
    [
        (Sizes(2), 5, 4),
        (Sizes(3), 5, 3),
        (Sizes(6), 4, 6),
        (Sizes(), 5, 5),
        (Sizes(powers=True), 5, 4),
        (Sizes(bound=4), 5, 3),
    ],
)
def test_parts_of_a_measurement_have_a_size_that_is_taken(
    sizes: Sizes, most: int, size: int
) -> None:
    plan = LoopPlan(batch_size=12, epochs=1, micro_batch_size=6, sizes=sizes)
    data = [torch.ones(3)] * 24
    with WorkloadTraining(lambda: workload(data)).loop(plan, ALONE, []) as loop:
        loop.run()
        assert {part[1] for part in loop.micro_batches(most)} == {size}


def test_an_epoch_without_any_batch_is_refused_by_name() -> None:
    def nothing(items: list[Any]) -> None:
        return None

    plan = LoopPlan(batch_size=4, epochs=1, micro_batch_size=4)
    training = WorkloadTraining(lambda: workload([torch.ones(3)] * 8, nothing))
    with (
        training.loop(plan, ALONE, []) as loop,
        pytest.raises(UsageError, match="every batch of the epoch is empty"),
    ):
        loop.run()


def test_batches_that_are_none_are_skipped_and_the_others_count() -> None:
    data = [None] * 5 + [torch.ones(3)]
    plan = LoopPlan(batch_size=1, epochs=1, micro_batch_size=1)
    with WorkloadTraining(lambda: workload(data)).loop(plan, ALONE, []) as loop:
        state = loop.run()
        assert (state.steps, state.examples) == (1, 6)
        with torch.no_grad():
            alone = float(loop.model(torch.ones(3)).square().mean())
        assert unseen_loss(loop) == pytest.approx(alone)
