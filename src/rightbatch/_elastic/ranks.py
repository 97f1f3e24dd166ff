"""Several processes that decide together: no collective is entered by some of them only.

Every process computes its parts without communicating, catches what goes wrong, and then votes.
Only where all went well are gradients reduced, out of buffers that exist already, so that nothing
can fail between the vote and the end of the reduction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from rightbatch._errors import UsageError

BUCKET_BYTES = 25 * 2**20
BALLOT = 4


class Ranks(Protocol):
    """The processes that train together; one of them may be all there is."""

    world_size: int

    def total(self, *values: float) -> Sequence[float]:
        """The sums over the processes of what each of them says: up to `BALLOT` values."""

    def smallest(self, value: int) -> int:
        """The smallest of their values."""

    def prepare(self, parameters: Sequence[nn.Parameter]) -> None:
        """Allocate what `reduce` needs."""

    def reduce(self, parameters: Sequence[nn.Parameter], weight: float) -> None:
        """Replace gradients by the sum over processes of `weight` times theirs."""

    def share(self, buffers: Sequence[Tensor]) -> None:
        """Give every process the buffers of the first one."""


class Alone:
    """One process: it agrees with itself."""

    world_size = 1

    def total(self, *values: float) -> Sequence[float]:
        return values

    def smallest(self, value: int) -> int:
        return value

    def prepare(self, parameters: Sequence[nn.Parameter]) -> None: ...

    def reduce(self, parameters: Sequence[nn.Parameter], weight: float) -> None: ...

    def share(self, buffers: Sequence[Tensor]) -> None: ...


class Together:
    """The processes of a `torch.distributed` group."""

    def __init__(self, group: Any, device: torch.device, parameters: int) -> None:
        self._group = group
        self.world_size = dist.get_world_size(group)
        on_device = device if dist.get_backend(group) == "nccl" else torch.device("cpu")
        self._ballot = torch.zeros(BALLOT, dtype=torch.float64, device=on_device)
        self._present = torch.zeros(parameters, device=on_device)
        self._buckets: list[Tensor] = []

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

    def prepare(self, parameters: Sequence[nn.Parameter]) -> None:
        self._present.copy_(torch.tensor([float(p.grad is not None) for p in parameters]))
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # another process may have one
            elif parameter.grad.is_sparse:
                raise UsageError("Elastic does not reduce sparse gradients over processes")
        if not self._buckets:
            self._buckets = [
                torch.empty(sum(p.numel() for p in bucket), dtype=b.dtype, device=b.device)
                for bucket in _buckets(parameters)
                for b in bucket[:1]
            ]

    def reduce(self, parameters: Sequence[nn.Parameter], weight: float) -> None:
        works = [dist.all_reduce(self._present, group=self._group, async_op=True)]
        buckets = _buckets(parameters)
        for flat, bucket in zip(self._buckets, buckets, strict=True):
            for piece, parameter in zip(_pieces(flat, bucket), bucket, strict=True):
                assert parameter.grad is not None  # `prepare` saw to it
                torch.mul(parameter.grad, weight, out=piece)
            works.append(dist.all_reduce(flat, group=self._group, async_op=True))
        for work in works:
            work.wait()
        for flat, bucket in zip(self._buckets, buckets, strict=True):
            for piece, parameter in zip(_pieces(flat, bucket), bucket, strict=True):
                assert parameter.grad is not None
                parameter.grad.copy_(piece)
        for parameter, present in zip(parameters, self._present.tolist(), strict=True):
            if not present:  # used by no process: an optimizer must pass over it
                parameter.grad = None

    def share(self, buffers: Sequence[Tensor]) -> None:
        first = dist.get_global_rank(self._group, 0)
        for buffer in buffers:
            dist.broadcast(buffer, first, group=self._group)


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
    return Together(group, device, sum(p.requires_grad for p in model.parameters()))


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
