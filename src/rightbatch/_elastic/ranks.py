"""Several processes that decide together: no collective is entered by some of them only.

Every attempt ends with the same collectives in every process: the buckets of the gradient in one
order, then a vote. While the last part's backward pass goes on, buckets whose gradients are
complete are already on their way. A process that ran out of memory sends zeros in the buckets that
it did not get to, and votes no; then all of them drop what they received. The buckets exist before
an attempt begins, so that taking part needs no memory, and gradients are copied into them, so that
they can be sent once more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from rightbatch._device import is_out_of_memory
from rightbatch._errors import UsageError

BUCKET_BYTES = 25 * 2**20
BALLOT = 5


class Ranks(Protocol):
    """The processes that train together; one of them may be all there is."""

    world_size: int

    def total(self, *values: float) -> Sequence[float]:
        """The sums over the processes of what each of them says: up to `BALLOT` values."""

    def smallest(self, value: int) -> int:
        """The smallest of their values."""

    def begin(self) -> bool:
        """Before an attempt; False, in every process, where one lacks memory for the buckets."""

    def sending(self, weight: float) -> AbstractContextManager[None]:
        """Inside, the last part's backward pass: `weight` times each complete gradient is sent."""

    def finish(self, weight: float | None) -> None:
        """Send what was not sent yet; zeros with None, where this process' attempt failed."""

    @property
    def was_early(self) -> bool:
        """Whether a gradient changed after it was sent: one that a backward pass adds to twice, as
        reentrant checkpoints do where they share a parameter."""

    def send_again(self, weight: float) -> None:
        """All of it, after `finish`; from now on nothing is sent before a backward pass ends."""

    def take(self, factor: float) -> None:
        """Once all went well: gradients become `factor` times the sum of what was sent."""

    def share(self, buffers: Sequence[Tensor]) -> None:
        """Give every process the buffers of the first one."""


class Alone:
    """One process: it agrees with itself."""

    world_size = 1
    was_early = False

    def total(self, *values: float) -> Sequence[float]:
        return values

    def smallest(self, value: int) -> int:
        return value

    def begin(self) -> bool:
        return True

    def sending(self, weight: float) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self, weight: float | None) -> None: ...

    def send_again(self, weight: float) -> None: ...

    def take(self, factor: float) -> None: ...

    def share(self, buffers: Sequence[Tensor]) -> None: ...


class Together:
    """The processes of a `torch.distributed` group."""

    def __init__(
        self, group: Any, device: torch.device, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._group = group
        self.world_size = dist.get_world_size(group)
        on_device = device if dist.get_backend(group) == "nccl" else torch.device("cpu")
        self._ballot = torch.zeros(BALLOT, dtype=torch.float64, device=on_device)
        self._present = torch.zeros(len(parameters), device=on_device)
        self._parameters = list(parameters)
        # Gradients are complete from the last layer to the first.
        self._buckets = _buckets(list(reversed(self._parameters)))
        self._flat: list[Tensor] = []
        self._places: dict[int, tuple[int, Tensor]] = {}
        self._weight: float | None = None
        self._works: list[Any] = []
        self._missing: list[int] = []
        self._written: set[int] = set()
        self.was_early = False
        self.overlaps = True
        hook = _weakly(self)
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(hook)

    def total(self, *values: float) -> Sequence[float]:
        said = [*values, *[0.0] * (BALLOT - len(values))]
        self._ballot.copy_(torch.tensor(said, dtype=torch.float64))
        dist.all_reduce(self._ballot, group=self._group)
        sums: list[float] = self._ballot.tolist()
        return sums[: len(values)]

    def smallest(self, value: int) -> int:
        self._ballot[0] = value
        dist.all_reduce(self._ballot, op=dist.ReduceOp.MIN, group=self._group)
        return int(self._ballot[0].item())

    def begin(self) -> bool:
        if not self._flat and not self._allocated():
            return False
        self._works, self._written, self.was_early = [], set(), False
        self._missing = [len(bucket) for bucket in self._buckets]
        return True

    @contextmanager
    def sending(self, weight: float) -> Iterator[None]:
        self._weight = weight if self.overlaps else None
        try:
            yield
        finally:
            self._weight = None

    def finish(self, weight: float | None) -> None:
        present = [float(p.grad is not None and weight is not None) for p in self._parameters]
        for index in range(len(self._works), len(self._buckets)):
            for parameter in self._buckets[index]:
                if id(parameter) not in self._written or weight is None:
                    self._write(parameter, weight)
            self._send(index)
        self._present.copy_(torch.tensor(present))
        self._works.append(dist.all_reduce(self._present, group=self._group, async_op=True))
        for work in self._works:
            work.wait()

    def send_again(self, weight: float) -> None:
        self.overlaps = False
        self.begin()
        self.finish(weight)

    def take(self, factor: float) -> None:
        for parameter, present in zip(self._parameters, self._present.tolist(), strict=True):
            if not present:  # used by no process: an optimizer must pass over it
                parameter.grad = None
                continue
            _, piece = self._places[id(parameter)]
            if parameter.grad is None:  # another process has one
                parameter.grad = torch.empty_like(parameter)
            torch.mul(piece, factor, out=parameter.grad)

    def share(self, buffers: Sequence[Tensor]) -> None:
        first = dist.get_global_rank(self._group, 0)
        for buffer in buffers:
            dist.broadcast(buffer, first, group=self._group)

    def _allocated(self) -> bool:
        """The buckets, in every process or in none."""
        flat: list[Tensor] = []
        try:
            flat = [
                torch.empty(sum(p.numel() for p in b), dtype=_sent_as(b), device=b[0].device)
                for b in self._buckets
            ]
        except BaseException as error:
            if not is_out_of_memory(error):
                raise
            flat = []
        if self.total(float(not flat))[0]:
            return False
        self._flat = flat
        for index, (whole, bucket) in enumerate(zip(flat, self._buckets, strict=True)):
            for piece, parameter in zip(_pieces(whole, bucket), bucket, strict=True):
                self._places[id(parameter)] = (index, piece)
        return True

    def _is_complete(self, parameter: nn.Parameter) -> None:
        """A gradient of the last part is there: buckets go in order, since all processes' do."""
        if self._weight is None:
            return
        index, _ = self._places[id(parameter)]
        if index < len(self._works):
            self.was_early = True
            return
        self._missing[index] -= id(parameter) not in self._written
        self._write(parameter, self._weight)
        while len(self._works) < len(self._buckets) and not self._missing[len(self._works)]:
            self._send(len(self._works))

    def _write(self, parameter: nn.Parameter, weight: float | None) -> None:
        _, piece = self._places[id(parameter)]
        self._written.add(id(parameter))
        if weight is None or parameter.grad is None:
            piece.zero_()
        elif parameter.grad.is_sparse:
            raise UsageError("Elastic does not reduce sparse gradients over processes")
        else:
            torch.mul(parameter.grad, weight, out=piece)

    def _send(self, index: int) -> None:
        self._works.append(dist.all_reduce(self._flat[index], group=self._group, async_op=True))


def _weakly(ranks: Together) -> Callable[[nn.Parameter], None]:
    """Hooks stay with the parameters; they must not keep the buckets."""
    reference = weakref.ref(ranks)

    def hook(parameter: nn.Parameter) -> None:
        alive = reference()
        if alive is not None:
            alive._is_complete(parameter)

    return hook


def _sent_as(bucket: Sequence[nn.Parameter]) -> torch.dtype:
    """Times a count of tokens, a sum in fp16 would overflow."""
    dtype = bucket[0].dtype
    return torch.float32 if dtype == torch.float16 else dtype


def bare_model(model: nn.Module) -> nn.Module:
    """The model without `DistributedDataParallel`.

    Its own collectives run in the forward pass and between backward hooks, where a process that ran
    out of memory would leave the others waiting.

    Raises:
        UsageError: for what cannot be retried safely.
    """
    if any(
        type(module).__name__.startswith(("FSDP", "FullySharded")) for module in model.modules()
    ):
        raise UsageError(
            "Elastic cannot retry a step of FSDP: its forward pass gathers parameters from every "
            "process, so that one that runs out of memory leaves the others waiting; use "
            "DistributedDataParallel, or FSDP with a micro-batch that `fit` found"
        )
    if isinstance(model, nn.DataParallel):
        raise UsageError("Elastic does not take nn.DataParallel; use DistributedDataParallel")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        bare: nn.Module = model.module
        return bare
    return model


def ranks_of(model: nn.Module, group: Any, device: torch.device) -> Ranks:
    """The processes that train `model`: those of its DDP wrapper, or of `group` if that is given.

    Raises:
        UsageError: for layers that communicate while they compute.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    if group is None or dist.get_world_size(group) == 1:
        return Alone()
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise UsageError(
            "Elastic cannot retry a step with SyncBatchNorm: it communicates inside the forward "
            "pass; use GroupNorm, or BatchNorm without synchronization"
        )
    return Together(group, device, [p for p in model.parameters() if p.requires_grad])


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = []
    held = 0
    for parameter in parameters:
        fits = (
            buckets
            and held + parameter.nbytes <= BUCKET_BYTES
            and buckets[-1][0].dtype == parameter.dtype
            and buckets[-1][0].device == parameter.device
        )
        if not fits:
            buckets.append([])
            held = 0
        buckets[-1].append(parameter)
        held += parameter.nbytes
    return buckets


def _pieces(flat: Tensor, bucket: Sequence[nn.Parameter]) -> list[Tensor]:
    pieces = flat.split([parameter.numel() for parameter in bucket])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, bucket, strict=True)]
