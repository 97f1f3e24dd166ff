"""`Elastic`: each call makes one update by a batch of any size, in parts that fit in memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rightbatch._device.caches import release
from rightbatch._elastic.evaluation import evaluate_parts
from rightbatch._elastic.events import Event, Kind, log_event
from rightbatch._elastic.exactness import Exactness
from rightbatch._elastic.gradients import Failure, GradientAccumulator, Loss, trained_parameters
from rightbatch._elastic.optimizer_step import OptimizerStep
from rightbatch._elastic.ranks import bare_model, ranks_of
from rightbatch._elastic.report import StepReport
from rightbatch._elastic.size_control import SizeControl
from rightbatch._elastic.snapshot import Snapshot
from rightbatch._elastic.trial_passes import TrialPasses
from rightbatch._elastic.undoable_update import UndoableUpdate
from rightbatch._errors import UsageError
from rightbatch._noise import NoiseScale
from rightbatch._units import parse_bytes
from rightbatch._workload.batch import Batch, count_examples, split_batch
from rightbatch._workload.loss import check_loss, with_scalar_result
from rightbatch._workload.normalization import min_examples


class Elastic:
    """Makes each batch one update, in as many micro-batches as memory requires.

    ::

        step = rb.Elastic(model, optimizer, loss)
        for batch in loader:
            report = step(batch)

    The gradient equals that of the whole batch, however it is split. If memory runs out, weights,
    optimizer state, buffers and random states are restored, and the same examples are tried again
    in smaller parts. Gradients are cleared when a step starts.

    Args:
        model: a module, or one in `DistributedDataParallel`: its processes then train together,
            without DDP's own reduction.
        optimizer: the optimizer of the model's parameters.
        loss: `loss(model, batch)` returns the scalar mean over `count(batch)`.
        micro_batch_size: the initial size of a part; `"auto"` measures it at the first step.
        count: what the loss averages over, as in `Workload`.
        split: cuts a batch into parts of at most n examples, as in `Workload`.
        scaler: a `GradScaler`, updated once per update.
        clip_norm: the norm to which the whole batch's gradient is clipped.
        scheduler: stepped once per update.
        before_attempt: called before the first part of a batch, and again before every retry.
        before_update: called when the gradients are complete and unscaled, before clipping; called
            again for the same batch if memory runs out in it.
        backward: replaces `loss.backward()`, for frameworks that wrap it.
        update: replaces the optimizer's step, for frameworks that wrap it.
        on_event: called with every `Event`; by default it is logged.
        group: the `torch.distributed` group that trains a model without the DDP wrapper.
        memory: bytes (or `"2GiB"`) that a step may add, for `"auto"`; all free memory if None.
        margin: share of that memory to leave free.
        noise: observes the parts of every update of two or more parts (not with `scaler`).
        rollback: make the optimizer's step atomic; docs/elastic.md has the cost of its copies.
        check: compare parts with the whole batch at the first step (`exactness`).

    Raises:
        UsageError: if a step of the model cannot be retried safely (FSDP, SyncBatchNorm over
            processes), or an argument is invalid.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Loss,
        *,
        micro_batch_size: int | str = "auto",
        count: Callable[[Batch], float] = count_examples,
        split: Callable[[Batch, int], Sequence[Batch]] = split_batch,
        scaler: torch.amp.GradScaler | None = None,
        clip_norm: float | None = None,
        scheduler: LRScheduler | None = None,
        before_attempt: Callable[[], object] | None = None,
        before_update: Callable[[], object] | None = None,
        backward: Callable[[Tensor], object] | None = None,
        update: Callable[[], object] | None = None,
        on_event: Callable[[Event], object] = log_event,
        group: Any = None,
        memory: int | str | None = None,
        margin: float = 0.05,
        noise: NoiseScale | None = None,
        rollback: bool = True,
        check: bool = True,
    ) -> None:
        if noise is not None and scaler is not None and scaler.is_enabled():
            raise UsageError(
                "noise requires gradients of a constant scale, which a GradScaler changes: train "
                "in bf16 or fp32, or use NoiseScale with weight=scaler.get_scale() in your own loop"
            )
        check_loss(loss)
        self._model = bare_model(model)
        parameters = trained_parameters(self._model, refuse_hooks=check)
        self._sizes = SizeControl(micro_batch_size, min_examples(self._model), on_event)
        self._device = parameters[0].device
        self._ranks = ranks_of(model, group, self._device)
        self._shares_buffers = bool(getattr(model, "broadcast_buffers", False))
        self._optimizer = optimizer
        self._loss, self._count, self._split = with_scalar_result(loss), count, split
        self._scheduler = scheduler
        self._limit = None if memory is None else parse_bytes(memory)
        self._margin = margin
        self._rollback = rollback
        self._check = check
        self._snapshot = Snapshot(self._model, self._device)
        self._trials = TrialPasses(
            self._model,
            self._loss,
            count=count,
            split=split,
            device=self._device,
            save=self._snapshot.take,
            restore=self._restore,
        )
        self._undoable = UndoableUpdate(optimizer, self._device, self._on_undo)
        self._optimizer_step = OptimizerStep(
            optimizer,
            parameters,
            scaler=scaler,
            clip_norm=clip_norm,
            before_update=before_update,
        )
        self._before_attempt = before_attempt or (lambda: None)
        self._update = update or self._optimizer_step.step
        has_completion = self._optimizer_step.has_completion
        self._gradient = GradientAccumulator(
            self._model,
            self._loss,
            count=count,
            split=split,
            backward=backward or self._optimizer_step.backward,
            complete=self._optimizer_step.complete if has_completion else None,
            ranks=self._ranks,
            device=self._device,
            noise=noise,
        )
        self._ended_at = 0.0
        self.exactness: Exactness | None = None

    @property
    def micro_batch_size(self) -> int | None:
        """The size in use; None until the first step has measured it."""
        return self._sizes.size

    @property
    def multiple(self) -> int:
        """The number that the part sizes are multiples of, as `"auto"` has found it; 1 without."""
        return self._sizes.multiple

    @property
    def counts(self) -> dict[Kind, int]:
        """The number of events of each kind so far."""
        return self._sizes.counts

    def use(self, micro_batch_size: int) -> None:
        """Use parts of this size from the next step on."""
        self._sizes.use(micro_batch_size)

    def __call__(self, batch: Batch) -> StepReport:
        """Make one update by `batch`; None is the batch of a process without examples.

        Raises:
            NothingFitsError: if memory runs out at one example, with everything as before the
                step; or half way through the optimizer's step, which the next call completes.
        """
        self._undoable.finish()
        report = self.gradients(batch)
        with self.atomic_update():
            self._update()
        if self._scheduler is not None:
            self._scheduler.step()
        if self._shares_buffers:
            self._ranks.broadcast(list(self._model.buffers()))
        seconds = report.seconds + time.perf_counter() - self._ended_at
        return replace(report, seconds=seconds, events=self.events)

    def gradients(self, batch: Batch) -> StepReport:
        """Compute the gradient of the whole `batch` in `parameter.grad`, without an update.

        For frameworks whose own loop makes the update, inside `atomic_update`.

        Raises:
            NothingFitsError: if memory runs out at one example.
        """
        started_at = time.perf_counter()
        self._sizes.clear_events()
        if self._check and batch is not None:
            self._check = False
            self.exactness, warning = self._trials.exactness(batch)
            if warning:
                self._sizes.record("inexact", warning)
        size = self._sizes.size or self._measure_size(batch)
        self._snapshot.take()
        self._optimizer.zero_grad()
        attempts = 1
        self._before_attempt()
        while isinstance(result := self._gradient.accumulate(batch, size), Failure):
            self._restore()
            size = self._sizes.on_failure(result)
            self._before_attempt()
            attempts += 1
        self._sizes.on_success(result)
        self._ended_at = time.perf_counter()
        return StepReport(
            step=self._sizes.steps - 1,
            count=result.count,
            micro_batch_size=size,
            micro_batches=result.parts,
            attempts=attempts,
            seconds=self._ended_at - started_at,
            gradient_norm=result.norm,
            mean_loss=result.loss,
            events=self.events,
        )

    def atomic_update(self) -> AbstractContextManager[None]:
        """Make any call of the optimizer's `step` inside the context atomic."""
        return self._undoable.atomic() if self._rollback else nullcontext()

    @property
    def events(self) -> tuple[Event, ...]:
        """The events since the last step, or the last evaluation, started."""
        return tuple(self._sizes.events)

    def evaluate(
        self, batch: Batch, function: Callable[[nn.Module, Batch], Any] | None = None
    ) -> list[tuple[Any, float]]:
        """Return `function(model, part)` and `count(part)` for every part of `batch`.

        `function` is the loss by default; it runs without gradients. A part in which memory runs
        out is split in two; the others are not repeated. Call `model.eval()` first.

        Raises:
            NothingFitsError: if memory runs out at one example.
        """
        self._sizes.clear_events()
        size = self._sizes.size
        parts = [batch] if size is None else list(self._split(batch, size))
        return evaluate_parts(
            self._model,
            parts,
            function or self._loss,
            count=self._count,
            split=self._split,
            device=self._device,
            on_failure=self._sizes.on_evaluation_failure,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the micro-batch and the numbers of steps and events; not the model's weights."""
        return self._sizes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`.

        The micro-batch is that of `state`, also if the device has more or less memory now. An
        integer `micro_batch_size` that differs from the saved one is kept instead.
        """
        self._sizes.load_state_dict(state)

    def _measure_size(self, batch: Batch) -> int:
        """Start with the largest micro-batch that is expected to fit, and return it."""
        if batch is None:  # the other processes measure
            return self._sizes.start(self._ranks.minimum(sys.maxsize >> 16))
        initial = self._trials.initial_size(
            batch,
            self._optimizer,
            limit=self._limit,
            margin=self._margin,
            least=self._sizes.least,
        )
        return self._sizes.start(
            self._ranks.minimum(initial.size), multiple=initial.multiple, reason=initial.reason
        )

    def _restore(self) -> None:
        """Remove the gradients, free cached memory, restore buffers and random states."""
        self._optimizer_step.clear_gradients()
        release(self._device)
        self._snapshot.restore()

    def _on_undo(self, reason: str) -> None:
        self._sizes.record("rolled_back", reason, failure=Failure("optimizer", reason))
