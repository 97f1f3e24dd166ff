"""The processes that torchrun started, or the only one."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Processes:
    """The device, rank and world size of this process."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def group(self) -> Any:
        """Torch's group of all processes; None for a single one. Not stored, see `opened`."""
        return dist.group.WORLD if self.world_size > 1 else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_of(self, batch: Sequence[int]) -> list[int]:
        """Return this process' part of a batch's indices; sizes of parts differ by at most one."""
        return list(batch[self.rank :: self.world_size])

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Broadcast the first process' values in place."""
        if self.group is not None:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0, group=self.group)

    def any(self, value: bool) -> bool:
        """Whether the value is true in any process."""
        if self.group is None:
            return value
        answer = torch.tensor(float(value), device=self._collectives_on)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=self.group)
        return bool(answer.item())

    def mean(self, value: float) -> float:
        """Return the mean of the processes' values."""
        if self.group is None:
            return value
        answer = torch.tensor(value, dtype=torch.float64, device=self._collectives_on)
        dist.all_reduce(answer, group=self.group)
        return float(answer.item()) / self.world_size

    def from_first(self, value: Any) -> Any:
        """Return the first process' value, which must be picklable."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, group=self.group, device=self._collectives_on)
        return box[0]

    @property
    def _collectives_on(self) -> torch.device:
        return self.device if dist.get_backend(self.group) == "nccl" else torch.device("cpu")


@contextmanager
def opened(device: str | None) -> Iterator[Processes]:
    """Join the process group that torchrun describes in the environment, if there is one."""
    from rightbatch._device import open_device

    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(torch.device(open_device(device).name))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    name = open_device(device).name
    if name.startswith("cuda"):
        name = f"cuda:{local}"
        torch.cuda.set_device(local)
    joined = not dist.is_initialized()
    if joined:
        dist.init_process_group("nccl" if name.startswith("cuda") else "gloo")
    try:
        yield Processes(torch.device(name), rank, world_size)
    finally:
        if joined:
            # Objects that still hold the group would destroy it when the interpreter exits, which
            # does not wait for gloo's threads.
            gc.collect()
            dist.destroy_process_group()
