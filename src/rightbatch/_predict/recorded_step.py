"""Record one step of a workload, phase by phase."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rightbatch._predict.recorder import Recorder
from rightbatch._predict.sharding import state_of
from rightbatch._predict.variant import Variant, autocast
from rightbatch._training.step import PlainStep
from rightbatch._workload.batch import Batch, map_tensors
from rightbatch._workload.modes import set_training
from rightbatch._workload.workload import Workload

STEPS = 2  # the first creates the optimizer's state


def record_step(
    w: Workload,
    parts: list[Batch],
    unseen: Batch,
    variant: Variant,
    recorder: Recorder,
    *,
    move: Callable[[Batch], Batch] | None = None,
) -> None:
    """Run training steps and an evaluation, and record their phases.

    `unseen` is a batch of evaluation data; None: the first of `parts` is evaluated. `move` returns
    a batch on the device; by default a copy of it every time.
    """
    move = move or _moved
    moved: Batch = None
    loss: Tensor | None = None
    step = PlainStep(
        w,
        "cpu",
        autocasting=lambda: autocast(w, variant),
        gradient_scaler=torch.amp.GradScaler("cpu", enabled=False),
        foreach=True if variant.capability is not None else None,  # as CUDA's default is
    )
    if not variant.inference:
        set_training(w.model, True)
        for _ in range(STEPS):
            recorder.phase("zero gradients")
            w.optimizer.zero_grad()
            for part in parts:
                recorder.phase("forward")
                moved = move(part)
                start = len(recorder.order)
                loss = step.loss(w.model, moved)
                recorder.classify_since(start, "activations")
                recorder.phase("backward")
                step.backward(loss)
                gradients = [p.grad for p in w.model.parameters() if p.grad is not None]
                recorder.classify(gradients, "gradients")
                del gradients
            recorder.phase("optimizer")
            step.update()
            classify_state(w.optimizer, variant, recorder)
    set_training(w.model, False)
    for _ in range(STEPS if variant.inference else 1):
        recorder.phase("evaluation")
        moved = move(parts[0] if unseen is None else unseen)
        start = len(recorder.order)
        output = step.infer(moved) if variant.inference else step.evaluate(moved)
        recorder.classify_since(start, "activations")
        del output


def _moved(batch: Batch) -> Batch:
    """Return copies, as `to(device)` does."""
    return map_tensors(batch, torch.clone)


class OneBatch:
    """Moves a batch once, and returns the same one until another is asked for."""

    def __init__(self) -> None:
        self._batch: Batch = None
        self._moved: Batch = None

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch on the device."""
        if batch is not self._batch:
            self._batch, self._moved = batch, _moved(batch)
        return self._moved


def classify_state(optimizer: torch.optim.Optimizer, variant: Variant, recorder: Recorder) -> None:
    """Classify the optimizer's state, and hide the tensors that CUDA keeps on the CPU."""
    state = list(state_of(optimizer).values())
    recorder.classify(
        (v for one in state for v in one.values() if isinstance(v, Tensor)), "optimizer"
    )
    if variant.capability is not None and variant.optimizer != "fused":
        # An optimizer that is not fused or capturable counts its steps on the CPU.
        steps = (one.get("step") for one in state)
        recorder.hide(step for step in steps if isinstance(step, Tensor) and step.ndim == 0)


def in_order_of_moving(module: nn.Module, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Iterate over parameters and buffers in the order in which `Module.to` moves them.

    Each comes with the name of its module, as `naming` has it.
    """
    for own, child in module.named_children():
        yield from in_order_of_moving(child, f"{name}.{own}" if name else own)
    tensors = [*module._parameters.values(), *module._buffers.values()]
    yield from ((name or "model", tensor) for tensor in tensors if tensor is not None)


@contextmanager
def without_collecting() -> Iterator[None]:
    """Disable the garbage collector inside the context, after one collection."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
