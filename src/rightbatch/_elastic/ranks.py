"""Coordination of the processes that train one model; every collective is entered by all of them.

Every attempt ends with the same collectives in every process: the gradient's buckets in one order,
then a vote on whether all processes succeeded. `ProcessGroup` has the implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch import distributed as dist

from rightbatch._errors import UsageError


class Ranks(Protocol):
    """The processes that train one model together; often a single one."""

    world_size: int

    def total(self, *values: float) -> Sequence[float]:
        """Return the sum over the processes of each of up to `MAX_VALUES` values."""

    def minimum(self, value: int) -> int:
        """Return the smallest `value` of all processes."""

    def begin(self) -> bool:
        """Start an attempt; False in every process if one lacks memory for the buckets."""

    def sending(self, weight: float) -> AbstractContextManager[None]:
        """Send gradients, times `weight`, while the last part's backward pass completes them."""

    def finish(self, weight: float | None) -> None:
        """Send the remaining gradients; zeros if `weight` is None, after a failed attempt."""

    @property
    def sent_too_early(self) -> bool:
        """Whether a gradient changed after it was sent.

        A backward pass adds to a gradient twice where reentrant checkpoints share a parameter.
        """

    def send_again(self, weight: float) -> None:
        """Send every gradient again after `finish`; later attempts send after the backward pass."""

    def set_gradients(self, factor: float) -> None:
        """Set each gradient to `factor` times the sum of what the processes sent."""

    def broadcast(self, buffers: Sequence[Tensor]) -> None:
        """Copy the buffers of the first process to all others."""


class SingleProcess:
    """One process without others to coordinate with."""

    world_size = 1
    sent_too_early = False

    def total(self, *values: float) -> Sequence[float]:
        return values

    def minimum(self, value: int) -> int:
        return value

    def begin(self) -> bool:
        return True

    def sending(self, weight: float) -> AbstractContextManager[None]:
        return nullcontext()

    def finish(self, weight: float | None) -> None: ...

    def send_again(self, weight: float) -> None: ...

    def set_gradients(self, factor: float) -> None: ...

    def broadcast(self, buffers: Sequence[Tensor]) -> None: ...


def ranks_of(model: nn.Module, group: Any, device: torch.device) -> Ranks:
    """Return the processes that train `model`: those of its DDP wrapper, or of `group`.

    Raises:
        UsageError: for layers that communicate during the forward pass.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    if group is None or dist.get_world_size(group) == 1:
        return SingleProcess()
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise UsageError(
            "Elastic cannot retry a step with SyncBatchNorm: it communicates inside the forward "
            "pass; use GroupNorm, or BatchNorm without synchronization"
        )
    from rightbatch._elastic.process_group import ProcessGroup

    return ProcessGroup(group, device, [p for p in model.parameters() if p.requires_grad])


def bare_model(model: nn.Module) -> nn.Module:
    """Return the model without `DistributedDataParallel`.

    DDP's own collectives run in the forward pass and between backward hooks, where a process that
    ran out of memory would leave the others waiting.

    Raises:
        UsageError: for wrappers whose step cannot be retried safely.
    """
    if any(
        type(module).__name__.startswith(("FSDP", "FullySharded")) for module in model.modules()
    ):
        raise UsageError(
            "Elastic cannot retry a step of FSDP: its forward pass gathers parameters from every "
            "process, so a process that runs out of memory leaves the others waiting; use "
            "DistributedDataParallel, or FSDP with a micro-batch that `fit` found"
        )
    if isinstance(model, nn.DataParallel):
        raise UsageError("Elastic does not support nn.DataParallel; use DistributedDataParallel")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        bare: nn.Module = model.module
        return bare
    return model
