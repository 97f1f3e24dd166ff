"""`Elastic`: one call is one update by a batch of any size, in parts that fit in memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rightbatch import _faults
from rightbatch._device.caches import release
from rightbatch._elastic.events import Event, Kind, tell
from rightbatch._elastic.exactness import EXAMPLES, Exactness, compare
from rightbatch._elastic.gradients import Failure, Gathered, Loss, WholeGradient, caught
from rightbatch._elastic.initial_size import find
from rightbatch._elastic.ranks import bare_model, ranks_of
from rightbatch._elastic.size_policy import MicroBatchSize
from rightbatch._elastic.state import StateBefore
from rightbatch._elastic.undoable_update import UndoableUpdate
from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._noise import NoiseScale
from rightbatch._units import parse_bytes
from rightbatch._workload.batch import Batch, count_examples, split_batch, to_device
from rightbatch._workload.normalization import least_examples


@dataclass(frozen=True)
class StepReport:
    """One update. `count` is what the loss averages over, in all processes together.

    `micro_batches` is how many parts this process ran, of at most `micro_batch_size` examples, in
    the attempt that succeeded, the last of `attempts`. `gradient_norm` is that before clipping,
    None without it. `seconds` are those of the call; a GPU may still be at work.
    """

    step: int
    count: float
    micro_batch_size: int
    micro_batches: int
    attempts: int
    seconds: float
    gradient_norm: Tensor | None = field(repr=False)
    mean_loss: Tensor = field(repr=False)
    events: tuple[Event, ...] = ()

    @property
    def loss(self) -> float:
        """The mean loss over this process' batch, before the update. Waits for the device."""
        return float(self.mean_loss)


class Elastic:
    """Makes each batch one update, in as many micro-batches as memory needs.

    ::

        step = rb.Elastic(model, optimizer, loss)
        for batch in loader:
            report = step(batch)

    `loss(model, batch)` is the mean over `count(batch)`, as in `Workload`; the gradient is that of
    the whole batch, whatever the parts. Where memory runs out, weights, optimizer state, buffers
    and random states are as before the step, and the same examples are tried again in smaller
    parts. Gradients are cleared when a step begins. `micro_batch_size="auto"` is found at the first
    step by measuring, within `memory` (by default what the device has free) less `margin`.

    `scaler`, `clip_norm` and `scheduler` act once an update. `before_update` is called when the
    gradients are complete and unscaled, before they are clipped; where memory runs out in it, it is
    called again for the same batch. `backward(loss)` and `update()` stand in for `loss.backward()`
    and the optimizer's step in frameworks that wrap them. `on_event` hears of every change.

    `noise` watches the parts of every update that has two or more (not with `scaler`).

    A model in `DistributedDataParallel` is trained by all of its processes together, without its
    own reduction; `group` names the processes of a model without that wrapper. `rollback=False`
    saves the copies that make the optimizer's step atomic (docs/elastic.md has their cost),
    `check=False` the comparison of parts with the whole at the first step (`exactness`).

    Raises:
        UsageError: for a model that cannot be retried safely (FSDP, SyncBatchNorm over processes).
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
        before_update: Callable[[], object] | None = None,
        backward: Callable[[Tensor], object] | None = None,
        update: Callable[[], object] | None = None,
        on_event: Callable[[Event], object] = tell,
        group: Any = None,
        memory: int | str | None = None,
        margin: float = 0.05,
        noise: NoiseScale | None = None,
        rollback: bool = True,
        check: bool = True,
    ) -> None:
        if noise is not None and scaler is not None and scaler.is_enabled():
            raise UsageError(
                "noise watches gradients of one scale, which a GradScaler changes: train in bf16 "
                "or fp32, or call NoiseScale with its weight in a loop of your own"
            )
        self._model = bare_model(model)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]
        if not self._parameters:
            raise UsageError("the model has no parameter that is trained")
        self._device = self._parameters[0].device
        self._ranks = ranks_of(model, group, self._device)
        self._shares_buffers = bool(getattr(model, "broadcast_buffers", False))
        self._optimizer = optimizer
        self._loss, self._count, self._split = loss, count, split
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._clip_norm = clip_norm
        self._scheduler = scheduler
        self._before_update = before_update
        self._update = update or self._plain_update
        self._on_event = on_event
        self._limit = None if memory is None else parse_bytes(memory)
        self._margin = margin
        self._rollback = rollback
        self._check = check
        self._before = StateBefore(self._model, self._device)
        self._undoable = UndoableUpdate(optimizer, self._device, self._undone)
        completes = self._scaler or before_update or clip_norm is not None
        self._gradient = WholeGradient(
            self._model,
            loss,
            count=count,
            split=split,
            backward=backward or self._plain_backward,
            complete=self._complete if completes else None,
            ranks=self._ranks,
            device=self._device,
            noise=noise,
        )
        self._least = least_examples(self._model)
        self._micro = _fixed(micro_batch_size, self._least)
        self._steps = 0
        self._ended = 0.0
        self._events: list[Event] = []
        self.exactness: Exactness | None = None
        self.counts: dict[Kind, int] = {}

    @property
    def micro_batch_size(self) -> int | None:
        """The size in use; None until the first step has found it."""
        return self._micro.size if self._micro else None

    def use(self, micro_batch_size: int) -> None:
        """Take parts of this size from the next step on, as if it had been given at first."""
        self._micro = _fixed(micro_batch_size, self._least)

    def __call__(self, batch: Batch) -> StepReport:
        """One update by `batch`, in parts; None is the batch of a process that has no examples.

        Raises:
            NothingFitsError: if memory runs out at one example, everything being as before the
                step; or half way through the optimizer's step, which the next call completes.
        """
        self._undoable.finish()
        report = self.gradients(batch)
        with self.atomic_update():
            self._update()
        if self._scheduler is not None:
            self._scheduler.step()
        if self._shares_buffers:
            self._ranks.share(list(self._model.buffers()))
        return replace(
            report, seconds=report.seconds + time.perf_counter() - self._ended, events=self.events
        )

    def gradients(self, batch: Batch) -> StepReport:
        """Only the gradient of the whole `batch`, in `parameter.grad`; the update is the caller's.

        For frameworks whose loop updates by itself, with `atomic_update` around that.

        Raises:
            NothingFitsError: if memory runs out at one example.
        """
        started = time.perf_counter()
        self._events = []
        if self._check and batch is not None:
            self._compare(batch)
        micro = self._micro = self._micro or self._found(batch)
        self._before.take()
        self._optimizer.zero_grad()
        attempts = 1
        while isinstance(done := self._gradient.gather(batch, micro.size), Failure):
            self._recover(done, micro)
            attempts += 1
        size = micro.size
        self._after(done, micro)
        self._steps += 1
        self._ended = time.perf_counter()
        return StepReport(
            step=self._steps - 1,
            count=done.count,
            micro_batch_size=size,
            micro_batches=done.parts,
            attempts=attempts,
            seconds=self._ended - started,
            gradient_norm=done.norm,
            mean_loss=done.loss,
            events=self.events,
        )

    def atomic_update(self) -> AbstractContextManager[None]:
        """Inside, the optimizer's `step` ends whole, whoever calls it."""
        return self._undoable.armed() if self._rollback else nullcontext()

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened since the last step, or the last evaluation, began."""
        return tuple(self._events)

    def evaluate(
        self, batch: Batch, function: Callable[[nn.Module, Batch], Any] | None = None
    ) -> list[tuple[Any, float]]:
        """`function(model, part)` without gradients for every part of `batch`, with its count.

        `function` is the loss unless given. A part in which memory runs out is cut in two, the
        others are not repeated. The model's mode is the caller's: `model.eval()` comes before.

        Raises:
            NothingFitsError: if memory runs out at one example.
        """
        self._events = []
        parts = [batch] if self._micro is None else list(self._split(batch, self._micro.size))
        results: list[tuple[Any, float]] = []
        while parts:
            done = self._evaluated(parts[0], function or self._loss)
            if not isinstance(done, Failure):
                results.append(done)
                parts.pop(0)
                continue
            release(self._device)
            size = len(self._split(parts[0], 1))
            if size == 1:
                raise self._nothing_fits(done, size)
            half = -(-size // 2)
            parts[:1] = self._split(parts[0], half)
            self._tell("out_of_memory", f"{done.message}; {half} at once are tried", half, done)
        return results

    def state_dict(self) -> dict[str, Any]:
        """The micro-batch, the number of steps and of events; weights are the model's to save."""
        return {
            "steps": self._steps,
            "counts": dict(self.counts),
            "micro_batch": self._micro.state_dict() if self._micro else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the one that `state_dict` was taken of."""
        self._steps = state["steps"]
        self.counts = dict(state["counts"])
        if state["micro_batch"] is not None:
            self._micro = MicroBatchSize(**state["micro_batch"])

    def _compare(self, batch: Batch) -> None:
        """Once: whether parts make the whole. Memory that runs out leaves it unknown."""
        self._check = False
        self._before.take()
        try:
            few = to_device(self._split(batch, EXAMPLES)[0], self._device)
            self.exactness = compare(
                self._model, self._loss, few, self._split, self._count, self._device
            )
        except BaseException as error:
            caught(error, "forward")
        self._clear()
        if self.exactness is not None and not self.exactness.is_exact:
            self._tell(
                "inexact",
                f"gradients of parts differ from the whole's by {self.exactness.difference:.2g}: "
                + self.exactness.reason,
                self.micro_batch_size or 0,
            )

    def _found(self, batch: Batch) -> MicroBatchSize:
        if batch is None:  # the other processes have examples to measure
            size = max(self._ranks.smallest(sys.maxsize >> 16), self._least)
            return MicroBatchSize(size, size, self._least)
        self._before.take()

        def run(n: int) -> None:
            part = to_device(self._split(batch, n)[0], self._device)
            self._loss(self._model, part).backward()
            self._clear()

        start = find(
            run,
            self._optimizer,
            len(self._split(batch, 1)),
            device=self._device,
            limit=self._limit,
            margin=self._margin,
        )
        size = max(self._ranks.smallest(start.size), self._least)
        self._tell("found", start.reason, size)
        return MicroBatchSize(size, size, self._least)

    def _complete(self) -> Tensor | None:
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        if self._before_update is not None:
            self._before_update()
        if self._clip_norm is None:
            return None
        return nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)

    def _recover(self, failure: Failure, micro: MicroBatchSize) -> None:
        """Everything as before the step, and a size to try next."""
        self._clear()
        size = micro.size
        answer = micro.failed()
        ran_out = f"memory ran out in {failure.place} at micro-batch {size} ({failure.message})"
        if answer == "none":
            raise self._nothing_fits(failure, size)
        what = {"again": "emptied the cache to try again", "smaller": f"trying {micro.size}"}
        self._tell("out_of_memory", f"{ran_out}; {what[answer]}", micro.size, failure)

    def _clear(self) -> None:
        """No gradients, and buffers and random states as they were taken."""
        for parameter in self._parameters:
            parameter.grad = None
        if self._scaler is not None:
            # A scaler refuses to unscale twice in an update; only `update` would make it forget.
            self._scaler._per_optimizer_states.pop(id(self._optimizer), None)
        release(self._device)
        self._before.restore()

    def _evaluated(
        self, part: Batch, function: Callable[[nn.Module, Batch], Any]
    ) -> tuple[Any, float] | Failure:
        try:
            with torch.no_grad():
                _faults.enter("evaluation")
                here = to_device(part, self._device)
                return function(self._model, here), float(self._count(here))
        except BaseException as error:
            return caught(error, "evaluation")

    def _after(self, done: Gathered, micro: MicroBatchSize) -> None:
        size = micro.size
        answer = micro.went_well(is_short=done.is_short, was_searched=done.was_searched)
        if answer == "larger":
            self._tell("grown", f"all went well for a while; trying micro-batch {micro.size}", size)
        elif answer == "smaller":
            reason = "the allocator had to search for room in consecutive steps"
            self._tell("shrunk", f"{reason}; going on with micro-batch {micro.size}", micro.size)

    def _undone(self, reason: str) -> None:
        size = self.micro_batch_size or 0
        self._tell("rolled_back", reason, size, Failure("optimizer", reason))

    def _tell(self, kind: Kind, reason: str, size: int, failure: Failure | None = None) -> None:
        event = Event(kind, self._steps, reason, size, failure.place if failure else None)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self._events.append(event)
        self._on_event(event)

    def _nothing_fits(self, failure: Failure, size: int) -> NothingFitsError:
        examples = "one example" if size == 1 else f"{size} examples, the fewest for BatchNorm"
        return NothingFitsError(
            f"memory ran out in {failure.place} at {examples}: {failure.message}. Everything is "
            "as before the step. `rightbatch fit` says what one example needs and what would save "
            "memory",
            error_type="OutOfMemoryError",
            error_message=failure.message,
        )

    def _plain_backward(self, loss: Tensor) -> None:
        (self._scaler.scale(loss) if self._scaler is not None else loss).backward()

    def _plain_update(self) -> None:
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._optimizer.step()


def _fixed(size: int | str, least: int) -> MicroBatchSize | None:
    if size == "auto":
        return None
    if not isinstance(size, int) or size < 1:
        raise UsageError(f"micro_batch_size is 'auto' or a number of at least 1, not {size!r}")
    return MicroBatchSize(max(size, least), max(size, least), least)
