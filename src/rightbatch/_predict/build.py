"""Build a workload for following, with fake weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rightbatch._device import is_out_of_memory, open_device
from rightbatch._errors import UsageError
from rightbatch._predict.known_values import fake_with_value
from rightbatch._predict.unfilled import Unfilled
from rightbatch._workload.held_modules import held_modules
from rightbatch._workload.lazy import materialize
from rightbatch._workload.workload import Workload

BUILD_LIMIT = 5 * 2**29
"""Bytes (2.5 GiB) that building may take besides unfilled weights, which take none."""
_UNSUPPORTED = {
    "FullyShardedDataParallel": "give the bare model; --processes N --sharding zero3 shards it",
    "FSDPModule": "give the bare model; --processes N --sharding zero3 shards it",
    "DistributedDataParallel": "give the bare model; --processes N adds the memory of DDP",
    "bitsandbytes": "its 8-bit kernels run on CUDA only; run rightbatch fit on the GPU",
    "torchao": "its optimizers compile their step; run rightbatch fit on the GPU",
    "deepspeed": "it shards and moves state itself; run rightbatch fit on the GPU",
}
"""Classes, and packages of classes, whose memory cannot be followed, with the remedy."""


def build(factory: Callable[[], Any]) -> Workload:
    """Return the factory's workload.

    Raises:
        UsageError: if the factory returns something else, or an unsupported class is used.
    """
    made = factory()
    if not isinstance(made, Workload):
        raise UsageError(
            f"the factory returned {type(made).__name__}, expected a rightbatch.Workload"
        )
    for part in (*made.model.modules(), made.optimizer):
        for kind in type(part).__mro__:
            package = kind.__module__.split(".")[0]
            remedy = _UNSUPPORTED.get(kind.__name__) or _UNSUPPORTED.get(package)
            if remedy is not None:
                raise UsageError(
                    f"predict does not support {kind.__module__}.{kind.__name__}: {remedy}"
                )
    return made


def build_fake(factory: Callable[[], Any], mode: FakeTensorMode) -> Workload:
    """Return the workload with fake parameters and buffers.

    The model is built on the CPU without filling its weights, which then take no memory, and its
    tensors are replaced by fake ones. Small ones keep their values.

    Raises:
        UsageError: as `build`.
    """
    try:
        with Unfilled():
            workload = build(factory)
            materialize(workload)
    except UsageError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        workload = _build_filled(factory, error)
    replaced: dict[int, Tensor] = {}
    for module in all_modules(workload):
        for own in cast("list[dict[str, Any]]", [module._parameters, module._buffers]):
            for name, tensor in own.items():
                if tensor is not None:
                    replaced[id(tensor)] = own[name] = fake_with_value(tensor, mode)
    for group in workload.optimizer.param_groups:
        group["params"] = [replaced.get(id(p), p) for p in group["params"]]
    return workload


def _build_filled(factory: Callable[[], Any], error: Exception) -> Workload:
    """Build with filled weights, because building without failed with `error`.

    Raises:
        UsageError: if the weights do not fit into memory.
    """
    try:
        workload = build(factory)
        materialize(workload)
    except Exception as failure:
        if not is_out_of_memory(failure):
            raise
        raise UsageError(
            f"building the model reads values of its weights ({type(error).__name__}: {error}), "
            "and it is too large to be built with them; run `rightbatch fit` on the device"
        ) from error
    return workload


def all_modules(workload: Workload) -> Iterator[nn.Module]:
    """Iterate over the modules of the model, and of those that its loss uses beside it."""
    for module in (workload.model, *held_modules(workload)):
        yield from module.modules()


def limit_building() -> None:
    """Make building more than `BUILD_LIMIT` bytes fail, if the system can enforce a limit."""
    device = open_device("cpu")
    device.prepare()
    device.enforce(BUILD_LIMIT)


def parameter_bytes(workload: Workload) -> int:
    """Return the bytes of weights, gradients, optimizer state and buffers.

    The state is two values per trained parameter for optimizers with `betas` (Adam), one with
    momentum.
    """

    def total(of: Iterable[Tensor]) -> int:
        return sum(int(tensor.nbytes) for tensor in of)

    model, defaults = workload.model, workload.optimizer.defaults
    held = held_modules(workload)
    copies = 2 if "betas" in defaults else 1 if defaults.get("momentum") else 0
    trained = total(p for p in model.parameters() if p.requires_grad)
    fixed = sum(total(m.parameters()) + total(m.buffers()) for m in (model, *held))
    return fixed + trained * (1 + copies)
