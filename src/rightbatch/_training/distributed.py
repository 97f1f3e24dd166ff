"""The processes that torchrun started, or the one there is."""

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
    """Who this process is among those that train together."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def group(self) -> Any:
        """Torch's group of all processes; None for one alone. Not kept: see `opened`."""
        return dist.group.WORLD if self.world_size > 1 else None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share_of(self, batch: Sequence[int]) -> list[int]:
        """This process' part of a batch's examples; parts differ by one at most."""
        return list(batch[self.rank :: self.world_size])

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.group is not None:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0, group=self.group)

    def any(self, said: bool) -> bool:
        """Whether any process says so."""
        if self.group is None:
            return said
        answer = torch.tensor(float(said), device=self._collectives_on)
        dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=self.group)
        return bool(answer.item())

    def mean(self, value: float) -> float:
        """The mean of what every process passes."""
        if self.group is None:
            return value
        answer = torch.tensor(value, dtype=torch.float64, device=self._collectives_on)
        dist.all_reduce(answer, group=self.group)
        return float(answer.item()) / self.world_size

    def from_first(self, value: Any) -> Any:
        """What the first process passes; the others' is ignored."""
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
    """Join the group that torchrun describes in the environment, where there is one."""
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
            # What still holds the group would end it only with the interpreter, whose end does not
            # wait for gloo's threads.
            gc.collect()
            dist.destroy_process_group()
