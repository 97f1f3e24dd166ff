"""Branches: short trainings at several batch sizes, all from the same state of a training."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rightbatch._device.caches import synchronize
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import LoopPlan, Observer, StepLoss
from rightbatch._training.step import PlainStep
from rightbatch._tune.pilot import UNBOUNDED
from rightbatch._tune.plan import Branch
from rightbatch._workload.batch import to_device
from rightbatch._workload.callbacks import StepCallbacks
from rightbatch._workload.modes import set_training
from rightbatch._workload.module_attributes import ModuleAttributes
from rightbatch._workload.order import training_indices
from rightbatch._workload.without_gradients import without_gradients

_HELD_OUT = 512
"""Examples of the evaluation that compares branches."""
_MICRO_BATCH = 64
"""Largest micro-batch of that evaluation."""


@dataclass(frozen=True)
class BranchPlan:
    """A branch at `batch_size`; its optimizer is scaled by the two factors (`scale_optimizer`)."""

    batch_size: int
    micro_batch_size: int
    batch_factor: float
    learning_rate_factor: float


def train_branches(
    loop: WorkloadLoop,
    plans: Sequence[BranchPlan],
    examples: int,
    show: Callable[[str], object] = lambda text: None,
) -> tuple[Branch, ...]:
    """Train each branch for at least `examples` from the state of `loop`, and return their losses.

    All branches see the same examples in the same order, without the workload's schedule. The state
    of `loop` is restored.
    """
    before, now = copy.deepcopy(loop.state_dict()), ModuleAttributes(loop.model)
    callbacks = loop.workload.callbacks
    plain = replace(
        loop.workload,
        scheduler=None,
        callbacks=StepCallbacks(callbacks) if callbacks is not None else None,
    )
    found = []
    try:
        for number, plan in enumerate(plans, start=1):
            show(f"branch {number} of {len(plans)}: batch size {plan.batch_size}")
            loop.load_state_dict(copy.deepcopy(before))
            loop.attributes.restore_tensors()  # a hidden state has the size of the batch before
            factors = (plan.batch_factor, plan.learning_rate_factor)
            branch = WorkloadLoop(
                plain,
                LoopPlan(
                    batch_size=plan.batch_size,
                    micro_batch_size=plan.micro_batch_size,
                    epochs=UNBOUNDED,
                    schedule_epochs=1,
                    factors=lambda betas, factors=factors: factors,  # type: ignore[misc]
                    seed=loop.plan.seed,
                ),
                loop.processes,
                [_StopAfter(examples)],
            )
            began = time.perf_counter()
            at = branch.run()
            synchronize(loop.device)
            seconds = time.perf_counter() - began
            found.append(Branch(plan.batch_size, unseen_loss(loop), seconds, at.examples))
    finally:
        loop.load_state_dict(before)
        now.restore()
    return tuple(found)


def unseen_loss(loop: WorkloadLoop) -> float:
    """Return the mean loss on a fixed sample of the evaluation data, or else the training data."""
    w, step = loop.workload, PlainStep(loop.workload, loop.device)
    data: Any = w.evaluation_data
    if data is None:
        data, indices = w.data, training_indices(w, loop.plan.seed)
    else:
        indices = range(len(data))
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(indices), generator=generator)[:_HELD_OUT].tolist()
    chosen = [indices[position] for position in shuffled]
    size = min(loop.micro_batch_size or 1, _MICRO_BATCH)
    total, weight = 0.0, 0.0
    loop.attributes.restore_tensors()
    set_training(loop.model, False)
    for start in range(0, len(chosen), size):
        batch = w.collate([data[index] for index in chosen[start : start + size]])
        count = float(w.count(batch)) if batch is not None else 0.0
        if count:
            here = to_device(batch, loop.device)
            total += float(without_gradients(step.loss, loop.model, here)) * count
            weight += count
    set_training(loop.model, True)
    return total / weight if weight else float("nan")


class _StopAfter(Observer):
    def __init__(self, examples: int) -> None:
        self._examples = examples

    def on_step(self, loop: WorkloadLoop, report: StepLoss) -> None:
        if loop.state.examples >= self._examples:
            loop.stop("the branch has seen its examples")
