"""Follow the step of an integration, with real tensors on the CPU, at sizes that fit anywhere.

The framework runs its own step, so its phases are seen from outside: the backward pass and the
optimizer's step announce themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, cast

import torch
from torch import nn

from rightbatch._errors import UsageError
from rightbatch._predict.cuda_semantics import cuda_semantics, sum_of
from rightbatch._predict.recorded_step import (
    STEPS,
    classify_state,
    in_order_of_moving,
    without_collecting,
)
from rightbatch._predict.recorder import Recorder
from rightbatch._predict.trace import Trace
from rightbatch._predict.variant import Variant, optimizer_as
from rightbatch._training.protocol import Session, Training


class FollowableSession(Session, Protocol):
    """What a training with `Ability.FOLLOW` opens; `recorder.transfer_batch` loads its batches."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one that its steps use."""

    def as_on_cuda(self) -> AbstractContextManager[None]:
        """While entered, what the framework chooses by device is chosen as on CUDA."""


class FrameworkFollower:
    """Traces the step of a training's session at small batch sizes; for a process of its own."""

    how = "real"
    can_fork = False
    batch_grows_in_steps = False

    def __init__(self, training: Training) -> None:
        self._training = training
        self.is_followed = False
        self._session: tuple[bool, FollowableSession] | None = None
        self.notes: list[str] = ["an integration's step was followed with real tensors"]

    @property
    def examples(self) -> int | None:
        """How many examples one epoch has; None before the first trace."""
        return self._session[1].examples if self._session is not None else None

    @property
    def at_least(self) -> int | None:
        """Unknown."""
        return None

    def traces(self, batch_sizes: Sequence[int], variant: Variant) -> list[Trace]:
        """A trace per batch size.

        Raises:
            UsageError: if the session cannot be followed, or not in this variant.
        """
        return [self.trace(size, variant) for size in batch_sizes]

    def trace(self, batch_size: int, variant: Variant) -> Trace:
        """The same for one batch size."""
        if (variant.precision, variant.optimizer) != (None, "default") or (
            variant.checkpointing or variant.halved or variant.accumulation > 1
        ):
            raise UsageError("an integration's step is followed as the framework runs it")
        if variant.sharding is not None:
            raise UsageError(
                f"{variant.sharding} is predicted for a Workload: the framework of this training "
                "shards with its own strategy"
            )
        return self._trace(self._opened(variant.inference), batch_size, variant)

    def _opened(self, inference: bool) -> FollowableSession:
        if self._session is None or self._session[0] != inference:
            if self._session is not None:
                self._session[1].close()
            opened = self._training.session("cpu", seed=0, inference=inference)
            session = cast(FollowableSession, opened)
            self._session = (inference, session)
            with session.as_on_cuda():  # what a framework makes once, it has made then
                if not inference:
                    session.step(2)
                session.evaluate(2)
        return self._session[1]

    def _trace(self, session: FollowableSession, batch_size: int, variant: Variant) -> Trace:
        optimizer = session.optimizer
        optimizer.zero_grad(set_to_none=True)
        optimizer.state.clear()
        recorder = Recorder(sum_of if variant.capability is not None else None)
        with ExitStack() as stack:
            stack.enter_context(without_collecting())
            if variant.capability is not None:
                stack.enter_context(cuda_semantics(variant.capability, is_fake=False))
                stack.enter_context(session.as_on_cuda())
            stack.enter_context(optimizer_as(optimizer, variant))
            model = session.modules()[0]
            stack.enter_context(recorder.naming(model))
            stack.enter_context(recorder)
            for module in session.modules():
                for name, tensor in in_order_of_moving(module):
                    is_trained = module is model and isinstance(tensor, nn.Parameter)
                    recorder.hold([tensor], "parameters" if is_trained else "other", name)
            if not variant.inference:
                stack.enter_context(_phases(recorder, model, optimizer, variant))
                for _ in range(STEPS):
                    recorder.phase("zero gradients")
                    recorder.phase("forward")
                    session.step(batch_size)
            for _ in range(STEPS if variant.inference else 1):
                recorder.phase("evaluation")
                start = len(recorder.order)
                session.evaluate(batch_size)
                recorder.classify_since(start, "activations")
            return recorder.trace()


@contextmanager
def _phases(
    recorder: Recorder, model: nn.Module, optimizer: torch.optim.Optimizer, variant: Variant
) -> Iterator[None]:
    """Name the phases of steps that somebody else runs."""
    original = torch.autograd.backward
    forward_began = len(recorder.order)

    def backward(*args: Any, **kwargs: Any) -> None:
        recorder.classify_since(forward_began, "activations")
        recorder.phase("backward")
        original(*args, **kwargs)
        gradients = (p.grad for p in model.parameters() if p.grad is not None)
        recorder.classify(gradients, "gradients")

    def before(*_: Any) -> None:
        recorder.phase("optimizer")

    def after(*_: Any) -> None:
        nonlocal forward_began
        classify_state(optimizer, variant, recorder)
        forward_began = len(recorder.order)

    torch.autograd.backward = backward
    hooks = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
    try:
        yield
    finally:
        torch.autograd.backward = original
        for hook in hooks:
            hook.remove()
