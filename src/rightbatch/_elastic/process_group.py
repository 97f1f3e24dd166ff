"""Gradient reduction over a `torch.distributed` group that survives a failure in any process.

Buckets whose gradients are complete are sent while the last part's backward pass still runs. A
process that ran out of memory sends zeros in its remaining buckets and votes "failed"; all
processes then discard what they received. Buckets are allocated before an attempt starts, so that
taking part needs no memory, and gradients are copied into them, so that they can be sent again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from rightbatch._device import is_out_of_memory
from rightbatch._errors import UsageError

BUCKET_BYTES = 25 * 2**20
MAX_VALUES = 5


class ProcessGroup:
    """The processes of a `torch.distributed` group; implements `Ranks`."""

    def __init__(
        self, group: Any, device: torch.device, parameters: Sequence[nn.Parameter]
    ) -> None:
        self._group = group
        self.world_size = dist.get_world_size(group)
        on_device = device if dist.get_backend(group) == "nccl" else torch.device("cpu")
        self._values = torch.zeros(MAX_VALUES, dtype=torch.float64, device=on_device)
        self._present = torch.zeros(len(parameters), device=on_device)
        self._parameters = list(parameters)
        # Gradients are completed from the last layer to the first.
        self._buckets = _buckets(list(reversed(self._parameters)))
        self._flat: list[Tensor] = []
        self._slots: dict[int, tuple[int, Tensor]] = {}  # parameter -> its bucket, its part of it
        self._weight: float | None = None
        self._works: list[Any] = []
        self._missing: list[int] = []
        self._written: set[int] = set()
        self.sent_too_early = False
        self.overlaps = True
        hook = _weak_hook(self)
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(hook)

    def total(self, *values: float) -> Sequence[float]:
        padded = [*values, *[0.0] * (MAX_VALUES - len(values))]
        self._values.copy_(torch.tensor(padded, dtype=torch.float64))
        dist.all_reduce(self._values, group=self._group)
        sums: list[float] = self._values.tolist()
        return sums[: len(values)]

    def minimum(self, value: int) -> int:
        self._values[0] = value
        dist.all_reduce(self._values, op=dist.ReduceOp.MIN, group=self._group)
        return int(self._values[0].item())

    def begin(self) -> bool:
        if not self._flat and not self._allocate():
            return False
        self._works, self._written, self.sent_too_early = [], set(), False
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

    def set_gradients(self, factor: float) -> None:
        for parameter, present in zip(self._parameters, self._present.tolist(), strict=True):
            if not present:  # unused in every process: the optimizer must skip it
                parameter.grad = None
                continue
            _, slot = self._slots[id(parameter)]
            if parameter.grad is None:  # used in another process only
                parameter.grad = torch.empty_like(parameter)
            torch.mul(slot, factor, out=parameter.grad)

    def broadcast(self, buffers: Sequence[Tensor]) -> None:
        first = dist.get_global_rank(self._group, 0)
        for buffer in buffers:
            dist.broadcast(buffer, first, group=self._group)

    def _allocate(self) -> bool:
        """Allocate the buckets in every process, or in none."""
        flat: list[Tensor] = []
        try:
            flat = [
                torch.empty(sum(p.numel() for p in b), dtype=_bucket_dtype(b), device=b[0].device)
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
            for slot, parameter in zip(_slots(whole, bucket), bucket, strict=True):
                self._slots[id(parameter)] = (index, slot)
        return True

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        """Write a completed gradient of the last part; send full buckets in order."""
        if self._weight is None:
            return
        index, _ = self._slots[id(parameter)]
        if index < len(self._works):
            self.sent_too_early = True
            return
        self._missing[index] -= id(parameter) not in self._written
        self._write(parameter, self._weight)
        while len(self._works) < len(self._buckets) and not self._missing[len(self._works)]:
            self._send(len(self._works))

    def _write(self, parameter: nn.Parameter, weight: float | None) -> None:
        _, slot = self._slots[id(parameter)]
        self._written.add(id(parameter))
        if weight is None or parameter.grad is None:
            slot.zero_()
        elif parameter.grad.is_sparse:
            raise UsageError(
                "Elastic does not reduce sparse gradients over processes; use sparse=False in "
                "the embedding"
            )
        else:
            torch.mul(parameter.grad, weight, out=slot)

    def _send(self, index: int) -> None:
        self._works.append(dist.all_reduce(self._flat[index], group=self._group, async_op=True))


def _weak_hook(ranks: ProcessGroup) -> Callable[[nn.Parameter], None]:
    """Return a hook without a strong reference, since parameters outlive the buckets."""
    reference = weakref.ref(ranks)

    def hook(parameter: nn.Parameter) -> None:
        alive = reference()
        if alive is not None:
            alive._on_gradient(parameter)

    return hook


def _bucket_dtype(bucket: Sequence[nn.Parameter]) -> torch.dtype:
    """Return fp32 for fp16 parameters: a gradient times a count of tokens would overflow."""
    dtype = bucket[0].dtype
    return torch.float32 if dtype == torch.float16 else dtype


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group parameters of one dtype and device, in order, into buckets of `BUCKET_BYTES`."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        fits = (
            buckets
            and size + parameter.nbytes <= BUCKET_BYTES
            and buckets[-1][0].dtype == parameter.dtype
            and buckets[-1][0].device == parameter.device
        )
        if not fits:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.nbytes
    return buckets


def _slots(flat: Tensor, bucket: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the view of `flat` for each parameter of the bucket, in the parameter's shape."""
    slots = flat.split([parameter.numel() for parameter in bucket])
    return [slot.view(parameter.shape) for slot, parameter in zip(slots, bucket, strict=True)]
