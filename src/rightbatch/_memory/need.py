"""What one step would need, from fake tensors: shapes flow through the model, numbers do not.

Used where running is impossible. A fake tensor has a shape, a type and a storage of a size, and no
memory; autograd keeps fakes alive exactly as it keeps real ones, so the peak of the live storages
is the peak that the step would have, without the workspaces of its kernels.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from rightbatch._batch import Batch, map_tensors, tensors
from rightbatch._workload import Workload

_HELPS = 0.99
"""A remedy leaves less than this share of what is needed."""


@dataclass(frozen=True)
class Need:
    """Bytes that a step of one batch needs, and with each remedy that could be tried.

    `how` is `measured` (it ran), `fake` (fake tensors) or `parameters` (weights, gradients and
    optimizer state only: the step itself could not be followed, so it needs more than that).
    """

    bytes: int
    how: str
    remedies: dict[str, int]


def need_of(factory: Callable[[], Any], batch_size: int = 1) -> Need | None:
    """What a training step of `batch_size` examples needs; None if that cannot be told.

    The model is built fake, so that this works where even its weights do not fit.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        workload = factory()
        if not isinstance(workload, Workload):
            return None
        try:
            items = [workload.data[0]] * batch_size
            batch = workload.collate(items)
            fakes = map_tensors(batch, lambda leaf: _fake(mode, leaf))
            total = _step(workload, fakes)
        except Exception:
            return Need(_at_least(workload), "parameters", {})
        remedies: dict[str, int] = {}
        with suppress(Exception):
            if workload.precision == "fp32":
                remedies["bf16 precision"] = _step(workload, fakes, "bf16")
        with suppress(Exception):
            smaller = _half_images(fakes)
            if smaller is not None:
                remedies["images of half the width and height"] = _step(workload, smaller)
        with suppress(Exception), _checkpointed(workload.model) as blocks:
            if blocks:
                remedies["activation checkpointing"] = _step(workload, fakes)
    helping = {name: size for name, size in remedies.items() if size < _HELPS * total}
    return Need(total, "fake", helping)


class _Live(TorchDispatchMode):
    """Follows the bytes of all storages that are referenced: of those in `held`, and new ones."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._known: set[int] = set()
        for tensor in held:
            self._add(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def _step(workload: Workload, batch: Batch, precision: str | None = None) -> int:
    """Peak bytes of one training step: weights, activations, gradients, optimizer state."""
    workload.optimizer.zero_grad(set_to_none=True)
    workload.optimizer.state.clear()
    model, precision = workload.model, precision or workload.precision
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with _Live([*model.parameters(), *model.buffers(), *tensors(batch)]) as live:
        for _ in range(2):  # the first creates the optimizer's state
            workload.optimizer.zero_grad()
            with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
                loss = workload.loss(model, batch)
            loss.backward()
            workload.optimizer.step()
    workload.optimizer.zero_grad(set_to_none=True)
    workload.optimizer.state.clear()
    return int(live.peak)


def _at_least(workload: Workload) -> int:
    """Weights, as many gradients, and the two moments of an Adam; one for SGD with momentum."""
    weights = _bytes(workload.model.parameters())
    defaults = workload.optimizer.defaults
    copies = 2 if "betas" in defaults else 1 if defaults.get("momentum") else 0
    return weights * (2 + copies) + _bytes(workload.model.buffers())


def _bytes(of: Iterator[Tensor]) -> int:
    return sum(int(tensor.nbytes) for tensor in of)


def _fake(mode: FakeTensorMode, leaf: Tensor) -> Tensor:
    return leaf if hasattr(leaf, "fake_mode") else mode.from_tensor(leaf)


def _half_images(batch: Batch) -> Batch | None:
    """The batch with every image (floating, N×C×H×W or more) at half the size; None without one."""
    found = [leaf for leaf in tensors(batch) if leaf.ndim >= 4 and leaf.is_floating_point()]
    if not found:
        return None

    def halve(leaf: Tensor) -> Tensor:
        if leaf.ndim < 4 or not leaf.is_floating_point():
            return leaf
        shape = [*leaf.shape[:2], *(max(side // 2, 1) for side in leaf.shape[2:])]
        return leaf.new_empty(shape)

    return map_tensors(batch, halve)


@contextmanager
def _checkpointed(model: nn.Module) -> Iterator[list[nn.Module]]:
    """The model with the blocks of its stacks checkpointed: recomputed instead of kept."""
    stacks = [m for m in model.modules() if isinstance(m, nn.Sequential | nn.ModuleList)]
    outer = [
        s for s in stacks if len(s) > 1 and not any(s in o.modules() for o in stacks if o is not s)
    ]
    blocks = [block for stack in outer for block in stack]
    for block in blocks:
        block.forward = _recomputed(block.forward)
    try:
        yield blocks
    finally:
        for block in blocks:
            del block.forward


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
