"""Build a workload for following: real without filled weights, or with fake tensors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rightbatch._device import is_out_of_memory, open_device
from rightbatch._errors import UsageError
from rightbatch._workload.workload import Workload

BUILD_LIMIT = 5 * 2**29
"""Bytes (2.5 GiB); a model whose construction needs more is built with fake tensors."""
_FILLS = {"normal_", "uniform_", "erfinv_", "clamp_", "mul_", "add_", "bernoulli_"}
_LARGE = 2**18  # elements; smaller tensors are filled, because a constructor may read them
_UNSUPPORTED = {
    "FullyShardedDataParallel": "what FSDP gathers depends on its processes; give the bare model",
    "FSDPModule": "what FSDP gathers depends on its processes; give the bare model",
    "DistributedDataParallel": "give the bare model; --processes adds the memory of DDP",
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


def build_fake(factory: Callable[[], Any], mode: FakeTensorMode) -> tuple[Workload, bool]:
    """Return the workload with fake parameters and buffers, and whether it was built fake.

    The model is built on the CPU without filling its weights, and its tensors are replaced by fake
    ones. A model that is too large for that is built with fake tensors.

    Raises:
        UsageError: as `build`.
    """
    try:
        with _Unfilled():  # type: ignore[no-untyped-call]
            workload = build(factory)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        gc.collect()
        with mode:
            return build(factory), True
    replaced: dict[int, Tensor] = {}
    for module in workload.model.modules():
        for own in cast("list[dict[str, Any]]", [module._parameters, module._buffers]):
            for name, tensor in own.items():
                if tensor is not None:
                    replaced[id(tensor)] = own[name] = as_fake(tensor, mode)
    for group in workload.optimizer.param_groups:
        group["params"] = [replaced.get(id(p), p) for p in group["params"]]
    return workload, False


def as_fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Return a fake tensor of the same shape, or the tensor itself if it is fake."""
    return tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor)


def limit_building() -> None:
    """Make building more than `BUILD_LIMIT` bytes fail, if the system can enforce a limit."""
    device = open_device("cpu")
    device.prepare()
    device.enforce(BUILD_LIMIT)


def parameter_bytes(workload: Workload) -> int:
    """Return the bytes of weights, gradients, optimizer state and buffers.

    The state is two values per parameter for optimizers with `betas` (Adam), one with momentum.
    """

    def total(of: Iterable[Tensor]) -> int:
        return sum(int(tensor.nbytes) for tensor in of)

    weights = total(workload.model.parameters())
    defaults = workload.optimizer.defaults
    copies = 2 if "betas" in defaults else 1 if defaults.get("momentum") else 0
    return weights * (2 + copies) + total(workload.model.buffers())


class _Unfilled(TorchDispatchMode):
    """Skips the initialization of large tensors, whose values are not needed."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._opname in _FILLS and args[0].numel() >= _LARGE:
            return args[0]
        return func(*args, **(kwargs or {}))
