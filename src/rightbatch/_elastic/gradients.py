"""The gradient of a whole batch from its parts: an attempt that succeeds everywhere or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rightbatch import _faults
from rightbatch._device import is_out_of_memory
from rightbatch._device.caches import allocator_retries
from rightbatch._elastic.ranks import Ranks
from rightbatch._errors import UsageError
from rightbatch._noise import NoiseScale
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.normalization import has_batch_norm

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Gathered:
    """An attempt that succeeded: `parameter.grad` is the gradient of the whole batch.

    `count` is that of all processes, `parts` and `loss` (the mean) those of this one. `is_short`
    says that one part was enough for some process, `was_searched` that an allocator had to search
    for room.
    """

    count: float
    parts: int
    loss: Tensor
    norm: Tensor | None
    is_short: bool
    was_searched: bool


@dataclass(frozen=True)
class Failure:
    """Memory ran out, here or in another process."""

    place: _faults.Place
    message: str


class WholeGradient:
    """Runs the parts of a batch, weighted by their counts."""

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
        """`complete` runs when the gradient is reduced; it returns its norm if it took it.

        `noise` watches the attempts that succeed.
        """
        self._model = model
        self._loss, self._count, self._split = loss, count, split
        self._backward, self._complete = backward, complete
        self._ranks = ranks
        self._device = device
        self._noise = noise
        self._needs_two = has_batch_norm(model)
        self._searches = allocator_retries(device)

    def gather(self, batch: Batch, size: int) -> Gathered | Failure:
        """Add up the gradients of parts of at most `size` examples; none are there before.

        `batch` is None where this process has nothing to add to the others' examples.

        Raises:
            UsageError: if the batch has nothing that counts.
        """
        place: _faults.Place = "forward"
        failure: Failure | None = None
        loss = torch.zeros((), device=self._device)
        count, number = 0.0, 0
        if not self._ranks.begin():
            return Failure("synchronization", "no room for the buckets that gradients are sent in")
        if self._noise is not None:
            self._noise.forget()  # of an attempt before this one
        try:
            parts = [] if batch is None else self._parts(batch, size)
            counts = [float(self._count(part)) for part in parts]
            count, number = sum(counts), len(parts)
            # The mean over nothing is not a number.
            counted = [(part, n) for part, n in zip(parts, counts, strict=True) if n]
            for left, (part, n) in zip(range(len(counted) - 1, -1, -1), counted, strict=True):
                _faults.enter(place := "forward")
                one = self._loss(self._model, to_device(part, self._device)) * (n / count)
                _faults.enter(place := "backward")
                with nullcontext() if left else self._ranks.sending(count):
                    self._backward(one)
                if self._noise is not None:
                    self._noise.micro_batch(n, n / count)
                loss = loss + one.detach()
            _faults.enter(place := "synchronization")
            if self._complete is None:
                _faults.enter(place := "hook")
        except BaseException as error:
            failure = caught(error, place)
        # From here no frame of the attempt is alive, nor what it allocated.
        self._ranks.finish(None if failure is not None else count)
        failures, total, short, searches, early = self._ranks.total(
            float(failure is not None),
            count,
            float(number == 1),
            float(self._has_searched()),
            float(self._ranks.was_early),
        )
        if failures:
            return failure or Failure(place, "another process ran out of memory")
        if not total > 0:
            raise UsageError(f"the batch holds nothing to average over: its count is {total:g}")
        if early:
            self._ranks.send_again(count)
        self._ranks.take(1 / total)
        if self._noise is not None:
            self._noise.complete(share=count / total * self._ranks.world_size)
        norm: Tensor | None = None
        if self._complete is not None:
            try:
                _faults.enter("hook")
                norm = self._complete()
            except BaseException as error:
                failure = caught(error, "hook")
            if self._ranks.total(float(failure is not None))[0]:
                return failure or Failure("hook", "another process ran out of memory")
        return Gathered(total, number, loss, norm, short > 0, searches > 0)

    def _parts(self, batch: Batch, size: int) -> Sequence[Batch]:
        """Parts of at most `size` examples; BatchNorm cannot train on one, so none is left over."""
        if not self._needs_two:
            return self._split(batch, size)
        number = len(self._split(batch, 1))
        if number <= max(size, 3 if size == 2 else 1):  # three are two and one
            return [batch]
        halves = self._split(batch, -(-number // 2))
        return [part for half in halves for part in self._parts(half, size)]

    def _has_searched(self) -> bool:
        searches = allocator_retries(self._device)
        searched, self._searches = searches > self._searches, searches
        return searched


@contextmanager
def set_aside(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor | None]]:
    """Inside there are no gradients; afterwards there are those from before, of earlier parts of
    the same update. The list then holds what was found inside."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    found: list[Tensor | None] = []
    try:
        yield found
        found += [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


def add_gradients(parameters: Sequence[nn.Parameter], found: Sequence[Tensor | None]) -> None:
    """Add gradients to those that there are, in place."""
    for parameter, gradient in zip(parameters, found, strict=True):
        if gradient is not None:
            own = parameter.grad
            parameter.grad = gradient if own is None else own.add_(gradient)


def caught(error: BaseException, place: _faults.Place) -> Failure:
    """What went wrong, in words only: the error holds frames, and those hold tensors.

    Raises:
        the error itself, where it is not about memory.
    """
    if not is_out_of_memory(error):
        raise error
    lines = str(error).splitlines()
    return Failure(place, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)
