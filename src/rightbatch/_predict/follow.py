"""Follow a workload's step without its memory, by running it on fake tensors and recording them.

Data and collate are always real. If a step needs values (a detection loss, a boolean mask), real
tensors are used instead, at batch sizes small enough to fit anywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rightbatch._errors import UsageError
from rightbatch._predict.build import as_fake, build, build_fake, parameter_bytes
from rightbatch._predict.cuda_semantics import cuda_semantics, temporaries
from rightbatch._predict.recorder import Recorder
from rightbatch._predict.trace import Trace
from rightbatch._predict.variant import (
    Variant,
    autocast,
    checkpointed,
    half_images,
    optimizer_as,
)
from rightbatch._training.step import PlainStep
from rightbatch._workload.batch import Batch, count_examples, map_tensors
from rightbatch._workload.workload import Workload
from rightbatch._workload.worst import WorstExamples

STEPS = 2  # the first creates the optimizer's state


class Follower:
    """Traces a workload's step at any batch size; runs in a process of its own.

    `how` is `fake`, or `real` if the step needs values; `notes` are for the user.

    Raises:
        UsageError: if the factory does not return a `Workload`, or it is not supported.
    """

    def __init__(self, factory: Callable[[], Any], *, seed: int = 0) -> None:
        self._factory = factory
        self._seed = seed
        self.is_followed = False
        self.how = "fake"
        self.notes: list[str] = []
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._mode: FakeTensorMode | None = mode
        self.workload, self._is_built_fake = build_fake(factory, mode)
        if self._is_built_fake:
            self.notes.append(
                "the model is too large to be built in memory; it was built with fake tensors"
            )

    @cached_property
    def _examples(self) -> WorstExamples:
        w = self.workload
        return WorstExamples(w.data, w.collate, w.size, self._seed)

    @property
    def examples(self) -> int | None:
        """The examples in an epoch; None if unknown."""
        try:
            return len(self.workload.data)  # type: ignore[arg-type]
        except TypeError:
            return None

    @property
    def can_fork(self) -> bool:
        """Whether no values are computed, so that forks of the process do not differ."""
        return self.how == "fake"

    @property
    def at_least(self) -> int:
        """The bytes that any step needs: parameters, gradients and optimizer state."""
        return parameter_bytes(self.workload)

    def traces(self, batch_sizes: Sequence[int], variant: Variant) -> list[Trace]:
        """Return a trace per batch size; use real tensors if fake ones fail.

        Raises:
            Exception: the workload's own error, if real tensors fail too.
        """
        try:
            traces = [self.trace(size, variant) for size in batch_sizes]
        except UsageError:
            raise
        except Exception as error:
            # After a success, a failure is due to the variant, which real tensors do not fix.
            if self.how == "real" or self._is_built_fake or self.is_followed:
                raise
            self.use_real_tensors(error)
            traces = [self.trace(size, variant) for size in batch_sizes]
        self.is_followed = True
        return traces

    def use_real_tensors(self, error: BaseException) -> None:
        """Follow real tensors from now on, because `error` was raised with fake ones."""
        self.how, self._mode = "real", None
        operator = getattr(error, "func", None)
        cause = f"{operator}" if operator is not None else f"{type(error).__name__}: {error}"
        self.notes.append(
            f"this step does not run on fake tensors ({cause.splitlines()[0][:200]}); it was "
            "followed with real tensors at small batch sizes"
        )
        self.workload = build(self._factory)
        gc.collect()

    def trace(self, batch_size: int, variant: Variant) -> Trace:
        """Record two training steps and an evaluation; for inference, two evaluations."""
        w = self.workload
        w.optimizer.zero_grad(set_to_none=True)
        w.optimizer.state.clear()
        items = self._examples.worst(batch_size)
        batch = w.collate([self._examples.data[index] for index in items])
        recorder = Recorder(temporaries if variant.capability is not None else None)
        with ExitStack() as stack:
            # Otherwise reference cycles would be freed at arbitrary events of the trace.
            stack.enter_context(without_collecting())
            if any(isinstance(module, nn.RNNBase) for module in w.model.modules()):
                stack.enter_context(_without_onednn())
            if variant.capability is not None:
                stack.enter_context(cuda_semantics(variant.capability))
            stack.enter_context(self._eager_mode())
            stack.enter_context(optimizer_as(w.optimizer, variant))
            if variant.checkpointing:
                stack.enter_context(checkpointed(w.model))
            mode = self._mode
            if mode is not None:
                batch = map_tensors(batch, lambda leaf: as_fake(leaf, mode))
                stack.enter_context(mode)
            if variant.halved:
                batch = half_images(batch)
            parts = [batch]
            if variant.accumulation > 1:
                parts = list(w.split(batch, ceil(count_examples(batch) / variant.accumulation)))
            stack.enter_context(recorder.naming(w.model))
            stack.enter_context(recorder)
            for tensor in list(in_order_of_moving(w.model)):
                kind = "parameters" if isinstance(tensor, nn.Parameter) else "other"
                recorder.hold([tensor], kind)
            _run(w, parts, variant, recorder)
            trace = recorder.trace()
        w.optimizer.zero_grad(set_to_none=True)
        w.optimizer.state.clear()
        return trace

    def _eager_mode(self) -> AbstractContextManager[object]:
        """Run a compiled model eagerly; only for compiled models, because the import is slow."""
        if not any(type(m).__name__ == "OptimizedModule" for m in self.workload.model.modules()):
            return nullcontext()
        note = "the compiled model was followed in eager mode; compiled, it may need less memory"
        if note not in self.notes:
            self.notes.append(note)
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance


def _run(w: Workload, parts: list[Batch], variant: Variant, recorder: Recorder) -> None:
    """Run training steps and an evaluation, and record their phases."""
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
        w.model.train()
        for _ in range(STEPS):
            recorder.phase("zero gradients")
            w.optimizer.zero_grad()
            for part in parts:
                recorder.phase("forward")
                moved = _moved(part)
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
    w.model.eval()
    for _ in range(STEPS if variant.inference else 1):
        recorder.phase("evaluation")
        moved = _moved(parts[0])
        start = len(recorder.order)
        output = step.evaluate(moved)
        recorder.classify_since(start, "activations")
        del output


def _moved(batch: Batch) -> Batch:
    """Return copies, as `to(device)` does."""
    return map_tensors(batch, torch.clone)


def classify_state(optimizer: torch.optim.Optimizer, variant: Variant, recorder: Recorder) -> None:
    """Classify the optimizer's state, and hide the tensors that CUDA keeps on the CPU."""
    state = list(optimizer.state.values())
    recorder.classify(
        (v for one in state for v in one.values() if isinstance(v, Tensor)), "optimizer"
    )
    if variant.capability is not None and variant.optimizer != "fused":
        # An optimizer that is not fused or capturable counts its steps on the CPU.
        steps = (one.get("step") for one in state)
        recorder.hide(step for step in steps if isinstance(step, Tensor) and step.ndim == 0)


def in_order_of_moving(module: nn.Module) -> Iterator[Tensor]:
    """Iterate over parameters and buffers in the order in which `Module.to` moves them."""
    for child in module.children():
        yield from in_order_of_moving(child)
    yield from (p for p in module._parameters.values() if p is not None)
    yield from (b for b in module._buffers.values() if b is not None)


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


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Disable oneDNN, whose recurrent layers have a workspace of unknown size."""
    was_enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(was_enabled)
