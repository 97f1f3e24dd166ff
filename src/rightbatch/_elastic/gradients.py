"""Accumulate a batch's gradient over its parts; an attempt succeeds in every process or in none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rightbatch import _faults
from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import allocator_retries
from rightbatch._elastic.gradient_hooks import GradientHooks
from rightbatch._elastic.ranks import Ranks
from rightbatch._errors import NothingFitsError, UsageError
from rightbatch._noise import NoiseScale
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.normalization import has_batch_norm

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Accumulated:
    """A successful attempt: `parameter.grad` is the gradient of the whole batch.

    `count` is over all processes; `parts` and the mean `loss` are of this process. `norm` is the
    gradient's norm before clipping. `is_single_part` says that some process needed one part only,
    `allocator_retried` that some process' allocator freed its cache to serve a request.
    """

    count: float
    parts: int
    loss: Tensor
    norm: Tensor | None
    is_single_part: bool
    allocator_retried: bool


@dataclass(frozen=True)
class Failure:
    """An out-of-memory error in this or another process."""

    place: _faults.Place
    message: str


class GradientAccumulator:
    """Runs forward and backward passes of the parts of a batch, weighted by their counts."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        count: Callable[[Batch], float],
        split: Callable[[Batch, int], Sequence[Batch]],
        backward: Callable[[Tensor], object],
        complete: Callable[[], Tensor | None] | None,
        ranks: Ranks,
        device: torch.device,
        noise: NoiseScale | None = None,
    ) -> None:
        """`complete` runs on the reduced gradient and returns its norm, or None.

        `noise` observes the attempts that succeed.
        """
        self._model = model
        self._loss, self._count, self._split = loss, count, split
        self._backward, self._complete = backward, complete
        self._ranks = ranks
        self._device = device
        self._noise = noise
        self._hooks = GradientHooks([p for p in model.parameters() if p.requires_grad])
        self._needs_two = has_batch_norm(model)
        self._retries = allocator_retries(device)

    def accumulate(self, batch: Batch, size: int) -> Accumulated | Failure:
        """Accumulate the gradients of parts of at most `size` examples.

        Expects no gradients. `batch` is None if this process has no examples for the update.

        Raises:
            UsageError: if the batch's count is zero.
        """
        place: _faults.Place = "forward"
        failure: Failure | None = None
        loss = torch.zeros((), device=self._device)
        count, number = 0.0, 0
        if not self._ranks.begin():
            return Failure("synchronization", "no memory for the buckets of the gradients")
        if self._noise is not None:
            self._noise.forget()  # the parts of a failed attempt
        try:
            parts = [] if batch is None else self._parts(batch, size)
            counts = [float(self._count(part)) for part in parts]
            count, number = sum(counts), len(parts)
            # The mean over an empty part is NaN.
            counted = [(part, n) for part, n in zip(parts, counts, strict=True) if n]
            for left, (part, n) in zip(range(len(counted) - 1, -1, -1), counted, strict=True):
                _faults.enter(place := "forward")
                weighted = self._loss(self._model, to_device(part, self._device)) * (n / count)
                _faults.enter(place := "backward")
                sending = nullcontext() if left else self._ranks.sending(count)
                with sending, self._hooks.postponed():
                    self._backward(weighted)
                if self._noise is not None:
                    self._noise.micro_batch(n, n / count)
                loss = loss + weighted.detach()
            _faults.enter(place := "synchronization")
            if self._complete is None and not self._hooks.exist:
                _faults.enter(place := "hook")
        except BaseException as error:
            is_other = not isinstance(error, UsageError) and not is_out_of_memory(error)
            if number > 1 and place == "forward" and is_other:
                error.add_note(
                    f"in a part of at most {size} examples, of {number} that split made; if the "
                    "first dimension of a batch is not its examples, or the loss takes whole "
                    "batches only, pass split= or a micro-batch of the batch's size"
                )
            failure = failure_from(error, place)
        # The frames of the attempt have ended, so that what they allocated is free.
        self._ranks.finish(None if failure is not None else count)
        failures, total, single_parts, retries, too_early = self._ranks.total(
            float(failure is not None),
            count,
            float(number == 1),
            float(self._has_retried()),
            float(self._ranks.sent_too_early),
        )
        if failures:
            return failure or Failure(place, "another process ran out of memory")
        if not total > 0:
            raise UsageError(
                f"count(batch) is {total:g}, so there is no mean to compute; pass batches with "
                "at least one example (or token) that counts"
            )
        if too_early:
            self._ranks.send_again(count)
        self._ranks.set_gradients(1 / total)
        if self._noise is not None:
            self._noise.complete(share=count / total * self._ranks.world_size)
        norm: Tensor | None = None
        if self._complete is not None or self._hooks.exist:
            try:
                _faults.enter("hook")
                self._hooks.apply()
                norm = self._complete() if self._complete is not None else None
            except BaseException as error:
                failure = failure_from(error, "hook")
            if self._ranks.total(float(failure is not None))[0]:
                return failure or Failure("hook", "another process ran out of memory")
        return Accumulated(total, number, loss, norm, single_parts > 0, retries > 0)

    def _parts(self, batch: Batch, size: int) -> Sequence[Batch]:
        """Split into parts of at most `size` examples; with BatchNorm none has a single example."""
        if not self._needs_two:
            return self._split(batch, size)
        number = len(self._split(batch, 1))
        if number <= max(size, 3 if size == 2 else 1):  # 3 would split into 2 and 1
            return [batch]
        halves = self._split(batch, -(-number // 2))
        return [part for half in halves for part in self._parts(half, size)]

    def _has_retried(self) -> bool:
        retries = allocator_retries(self._device)
        has_retried, self._retries = retries > self._retries, retries
        return has_retried


def trained_parameters(model: nn.Module, *, refuse_hooks: bool) -> list[nn.Parameter]:
    """Return the parameters that require a gradient.

    Raises:
        UsageError: if there are none, or, with `refuse_hooks`, if one has a hook that runs when its
            gradient is accumulated.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UsageError("no parameter of the model requires a gradient")
    if refuse_hooks and any(getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        raise UsageError(
            "parameters have post-accumulate-grad hooks, which an optimizer in the backward pass "
            "registers: they would run once for every part instead of once for the batch. Train "
            "without parts, or pass check=False if the hooks only observe"
        )
    return parameters


@contextmanager
def separate_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor | None]]:
    """Start without gradients, and restore the previous ones (of the same update) at the end.

    The list then holds the gradients computed inside the context.
    """
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    computed: list[Tensor | None] = []
    try:
        yield computed
        computed += [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def add_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
    """Add `gradients` to the parameters' gradients, in place."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            own = parameter.grad
            parameter.grad = gradient if own is None else own.add_(gradient)


def nothing_fits(failure: Failure, size: int) -> NothingFitsError:
    """Return the error for memory that ran out at the smallest possible part."""
    examples = "one example" if size == 1 else f"{size} examples, the minimum for BatchNorm"
    return NothingFitsError(
        f"memory ran out in {failure.place} at {examples}: {failure.message}. Weights, optimizer "
        "and buffers are unchanged. Run `rightbatch fit` for the memory that one example needs "
        "and ways to save memory",
        error_type="OutOfMemoryError",
        error_message=failure.message,
    )


def failure_from(error: BaseException, place: _faults.Place) -> Failure:
    """Return the out-of-memory error as text; the error object would keep frames and tensors alive.

    Raises:
        BaseException: `error` itself, if it is not about memory.
    """
    if not is_out_of_memory(error):
        raise error
    lines = str(error).splitlines()
    return Failure(place, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)
