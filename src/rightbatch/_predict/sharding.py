"""Shard a step over processes that do not exist, with PyTorch's own FSDP2 and ZeRO.

The process that follows a step is the first of several: PyTorch's "fake" process group moves no
data and waits for nobody, so that FSDP2 gathers, reduces and frees as it does on a GPU. Its rank is
0, which holds the largest shards.

The peers' names of what is sharded: `zero1` is `ZeroRedundancyOptimizer` (the optimizer's state),
`zero2` FSDP2 with `reshard_after_forward=False` (gradients as well), `zero3` FSDP2 as it is, or
`FULL_SHARD` (parameters as well). DeepSpeed has buckets of its own beside these, of
`reduce_bucket_size` and `allgather_bucket_size` elements.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from rightbatch._errors import UsageError
from rightbatch._predict.options import Sharding
from rightbatch._predict.variant import blocks_of
from rightbatch._workload.workload import Workload

_Storage: Any = torch.UntypedStorage


def shard(
    workload: Workload, sharding: Sharding, ranks: int, mode: AbstractContextManager[Any]
) -> Workload:
    """Return the workload of the first of `ranks` processes; its model is changed in place.

    `mode` is entered where tensors are made. With `zero2` and `zero3` each block of the model is a
    unit of FSDP2, and what remains another: the blocks are those of activation checkpointing, the
    entries of the outermost lists of modules.

    Raises:
        UsageError: if the optimizer cannot be built for a part of the parameters, or two
            blocks share a parameter.
    """
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    if sharding == "zero1":
        with mode:
            return replace(workload, optimizer=_partitioned(workload.optimizer))
    names = {id(p): name for name, p in workload.model.named_parameters()}
    _fully_shard(workload.model, sharding == "zero2", ranks, mode)
    sharded = dict(workload.model.named_parameters())
    for group in workload.optimizer.param_groups:
        group["params"] = [sharded[names[id(p)]] if id(p) in names else p for p in group["params"]]
    return workload


def _fully_shard(
    model: nn.Module, keeps_gathered: bool, ranks: int, mode: AbstractContextManager[Any]
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    blocks = blocks_of(model)
    _check_unshared(model, blocks)
    mesh = init_device_mesh("cpu", (ranks,))  # reads ranks from a tensor
    apply = partial(fully_shard, mesh=mesh)
    if keeps_gathered:
        apply = partial(apply, reshard_after_forward=False)
    with mode:
        for module in (*blocks, model):
            if any(True for _ in module.parameters()):
                apply(module)


def _check_unshared(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Check that no two units of FSDP2 have a parameter together, which it does not shard."""
    unit_of = {id(m): number for number, block in enumerate(blocks) for m in block.modules()}
    first: dict[int, int | None] = {}
    for name, module in model.named_modules():
        unit = unit_of.get(id(module))
        for own, parameter in module._parameters.items():
            if parameter is not None and first.setdefault(id(parameter), unit) != unit:
                raise UsageError(
                    f"{name}.{own} is shared with another block, and FSDP2 shards block by block; "
                    "predict it with zero1, or without sharding"
                )


def _partitioned(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return one of the same kind for the parameters that are this process's to update."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    kind = type(optimizer)
    taken = inspect.signature(kind).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in taken}
    groups = [dict(group) for group in optimizer.param_groups]
    try:
        return ZeroRedundancyOptimizer(groups, optimizer_class=kind, **settings)
    except Exception as error:
        raise UsageError(
            f"zero1 cannot rebuild {kind.__name__} for a part of the parameters "
            f"({type(error).__name__}: {error}); zero2 and zero3 keep the optimizer as it is"
        ) from error


def state_of(optimizer: torch.optim.Optimizer) -> dict[Tensor, Any]:
    """Return the state that an optimizer keeps in this process."""
    own: torch.optim.Optimizer = getattr(optimizer, "optim", optimizer)
    return own.state


def free_gathered(model: nn.Module) -> None:
    """Free gathered parameters, as a new process has none."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor: itself, if it is not sharded."""
    part: Tensor = getattr(tensor, "_local_tensor", tensor)
    return part


def is_sharded_call(types: Iterable[type]) -> bool:
    """Return whether an operator is called on sharded tensors, by the types of its arguments."""
    return any(kind.__name__ == "DTensor" for kind in types)


class StreamNumbers:
    """Returns the number of the stream on which memory is allocated now; 0 is the default."""

    def __init__(self) -> None:
        self._numbers = {torch.cpu.current_stream(): 0}

    def __call__(self) -> int:
        return self._numbers.setdefault(torch.cpu.current_stream(), len(self._numbers))


@contextmanager
def only_memory_shown(resized: Callable[[torch.UntypedStorage, int], None]) -> Iterator[None]:
    """Let a recorder see what takes memory in a sharded step, and nothing else.

    FSDP2 frees gathered parameters by making their storages empty, which no operator shows:
    `resized(storage, bytes)` is called after such a change. Operators on sharded tensors are run on
    fake ones of the whole shape first, to learn the result's: without the active modes here.
    """
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    propagator: Any = ShardingPropagator
    name = "_propagate_tensor_meta_non_cached"  # older ones have the cached one only
    name = name if hasattr(propagator, name) else "_propagate_tensor_meta"
    propagate, resize = getattr(propagator, name), _Storage.resize_

    def unseen(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return propagate(*args, **kwargs)

    def shown(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        resized(storage, size)
        return result

    _Storage.resize_ = shown
    setattr(propagator, name, unseen)
    try:
        yield
    finally:
        _Storage.resize_ = resize
        setattr(propagator, name, propagate)
