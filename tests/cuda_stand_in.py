"""A CUDA device made of CPU tensors, for code that asks `torch.cuda` about memory.

While a `StandIn` is entered, `device="cuda"` makes tensors whose numbers lie in the CPU's memory
and whose bytes are those of a simulated GPU: the caching allocator's rules, a driver that counts
contexts and other processes, a limit by `set_per_process_memory_fraction`, and the first matrix
product's workspace. It says nothing of kernels, streams or time, and is no proof that a real device
does the same; `test_cuda.py` runs the same contract there.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rightbatch._predict.allocator import Allocator, AllocatorOutOfMemory

MIB = 2**20
_CAPTURE_CHECKS = (
    "_accelerator_graph_capture_health_check",
    "_cuda_graph_capture_health_check",
)
"""Where optimizers ask the driver whether a CUDA graph is being captured, by version of torch."""
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "_addmm_activation"}


class StandIn:
    """One GPU as the driver and PyTorch's allocator account for it; all sizes in bytes.

    `others` is what other processes hold, `context` what this one takes when it first touches the
    device, `outside` what it takes later beside the allocator (kernels, communicators).
    """

    def __init__(
        self,
        total: int = 4096 * MIB,
        *,
        context: int = 400 * MIB,
        others: int = 0,
        workspace: int = 32 * MIB,
        capability: tuple[int, int] = (9, 0),
        name: str = "Test GPU",
        is_integrated: bool = False,
    ) -> None:
        self.total, self.context, self.others, self.workspace = total, context, others, workspace
        self.capability, self.name, self.is_integrated = capability, name, is_integrated
        self.outside = 0
        self.is_touched = False
        self.fraction = 1.0
        self.history: list[dict[str, Any]] | None = None
        self.allocator = Allocator(new_segment=self._new_segment, first_address=1 << 40)
        self._next = 1 << 40
        self._segments: dict[int, int] = {}
        self._live: dict[int, tuple[int, int]] = {}  # storage -> address, bytes asked for
        self._peaks = {"allocated": 0, "reserved": 0}
        self._has_workspace = False

    @property
    def free(self) -> int:
        """As the driver has it."""
        used = self.others + self.outside + self.allocator.reserved
        return self.total - used - (self.context if self.is_touched else 0)

    def holds(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._live

    def place(self, tensor: Tensor) -> None:
        """Count a tensor's storage as allocated on the device, until nobody refers to it.

        Raises:
            torch.OutOfMemoryError: with the allocator's message, if there is no room.
        """
        storage = tensor.untyped_storage()
        if self.holds(tensor) or storage.nbytes() == 0:
            return
        self._live[storage._cdata] = self._malloc(storage.nbytes()), storage.nbytes()
        weakref.finalize(storage, self._free, storage._cdata)

    def multiply(self) -> None:
        """The first product takes cuBLAS's workspace, and keeps it."""
        if not self._has_workspace:
            self._has_workspace = True
            self._live[-1] = self._malloc(self.workspace), self.workspace

    def empty_cache(self) -> None:
        self.allocator.empty_cache()
        self._log_released()

    def reset_peaks(self) -> None:
        self._peaks = {"allocated": self.allocator.allocated, "reserved": self.allocator.reserved}

    def touch(self) -> None:
        self.is_touched = True

    def _malloc(self, size: int) -> int:
        self.touch()
        try:
            address = self.allocator.malloc(size)
        except AllocatorOutOfMemory as error:
            self._log_released()
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / MIB:.2f} MiB. GPU 0 has a total "
                f"capacity of {self.total / MIB:.2f} MiB of which {self.free / MIB:.2f} MiB is free"
            ) from error
        self._log("alloc", address, size)
        self._peaks["allocated"] = max(self._peaks["allocated"], self.allocator.allocated)
        self._peaks["reserved"] = max(self._peaks["reserved"], self.allocator.reserved)
        return address

    def _free(self, key: int) -> None:
        address, size = self._live.pop(key)
        self.allocator.free(address)
        self._log("free_requested", address, size)
        self._log("free_completed", address, size)

    def _new_segment(self, size: int) -> int | None:
        self._log_released()
        allowed = int(self.fraction * self.total)
        if size > self.free or (self.fraction < 1 and self.allocator.reserved + size > allowed):
            return None
        address, self._next = self._next, self._next + size + 2 * MIB
        self._segments[address] = size
        self._log("segment_alloc", address, size)
        return address

    def _log_released(self) -> None:
        known = self.allocator.segments
        for address in [one for one in self._segments if one not in known]:
            self._log("segment_free", address, self._segments.pop(address))

    def _log(self, action: str, address: int, size: int) -> None:
        if self.history is not None:
            entry = {"action": action, "addr": address, "size": size, "stream": 0}
            self.history.append(entry)

    # torch.cuda's functions

    def memory_stats(self, device: Any = None) -> dict[str, int]:
        return {
            "num_alloc_retries": self.allocator.retries,
            "allocated_bytes.all.current": self.allocator.allocated,
            "reserved_bytes.all.current": self.allocator.reserved,
        }

    def set_fraction(self, fraction: float, device: Any = None) -> None:
        if not isinstance(fraction, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        self.fraction = fraction

    def properties(self, device: Any = None) -> Any:
        major, minor = self.capability
        return types.SimpleNamespace(
            name=self.name,
            total_memory=self.total,
            major=major,
            minor=minor,
            is_integrated=self.is_integrated,
            multi_processor_count=8,
            uuid="01234567-89ab-cdef-0123-456789abcdef",
        )

    def record(self, enabled: str | None = "all", context: str | None = "all") -> None:
        self.history = None if enabled is None else []

    def snapshot(self, device: Any = None) -> dict[str, Any]:
        """In the form of `torch.cuda.memory._snapshot`."""
        asked = dict(self._live.values())
        segments = []
        blocks = list(self.allocator.blocks())
        for start, size in sorted(self.allocator.segments.items()):
            inside = [
                {
                    "size": extent,
                    "requested_size": asked.get(address, 0),
                    "address": address,
                    "state": "inactive" if is_free else "active_allocated",
                }
                for address, extent, is_free in blocks
                if start <= address < start + size
            ]
            about = {"device": 0, "address": start, "total_size": size, "stream": 0}
            segments.append(about | {"blocks": inside})
        return {
            "segments": segments,
            "device_traces": [list(self.history or [])],
            "allocator_settings": {"max_split_size": -1, "expandable_segments": False},
        }

    @contextmanager
    def entered(self) -> Iterator[StandIn]:
        """`torch.cuda` speaks of this device, and `device="cuda"` is there."""

        def touching(value: Any) -> Any:
            def answer(*_: Any, **__: Any) -> Any:
                self.touch()
                return value() if callable(value) else value

            return answer

        functions = {
            "is_available": lambda: True,
            "is_bf16_supported": lambda *_, **__: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda *_: self.name,
            "get_device_capability": lambda *_: self.capability,
            "get_device_properties": self.properties,
            "init": touching(None),
            "set_device": touching(None),
            "synchronize": touching(None),
            "empty_cache": self.empty_cache,
            "mem_get_info": touching(lambda: (self.free, self.total)),
            "memory_allocated": lambda *_: self.allocator.allocated,
            "memory_reserved": lambda *_: self.allocator.reserved,
            "max_memory_allocated": lambda *_: self._peaks["allocated"],
            "max_memory_reserved": lambda *_: self._peaks["reserved"],
            "reset_peak_memory_stats": lambda *_: self.reset_peaks(),
            "memory_stats": self.memory_stats,
            "set_per_process_memory_fraction": self.set_fraction,
        }
        with ExitStack() as stack:
            for name, function in functions.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, function))
            for name, recording in (
                ("_record_memory_history", self.record),
                ("_snapshot", self.snapshot),
            ):
                stack.enter_context(mock.patch.object(torch.cuda.memory, name, recording))
            for name in _CAPTURE_CHECKS:
                if hasattr(torch.optim.Optimizer, name):
                    stack.enter_context(mock.patch.object(torch.optim.Optimizer, name))
            stack.enter_context(_Storages(self))
            stack.enter_context(_Devices(self))
            yield self


class _Devices(TorchFunctionMode):
    """Sends what names CUDA to the CPU, with the right answer to `tensor.device`."""

    def __init__(self, gpu: StandIn) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        gpu, kwargs = self._gpu, kwargs or {}
        if func in (torch.device, torch._C._nn._parse_to):  # they only read names
            return func(*args, **kwargs)
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        # Wrappers of getters are made anew whenever they are asked for, so they are compared by ==.
        if func == Tensor.device.__get__ and tensor is not None and gpu.holds(tensor):
            return torch.device("cuda", 0)
        if func == Tensor.is_cuda.__get__ and tensor is not None:
            return gpu.holds(tensor)
        is_cuda = func == Tensor.cuda or any(map(_names_cuda, tree_leaves((args, kwargs))))
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu) and tensor is not None:
            is_cpu = func == Tensor.cpu or any(map(_names_cpu, tree_leaves((args[1:], kwargs))))
            if func == Tensor.to:
                args, kwargs = tree_map(_on_cpu, (args, kwargs))
                moved = func(*args, **kwargs)
            else:
                moved = tensor
            if gpu.holds(tensor) == is_cuda or not (is_cuda or is_cpu):
                return moved
            with _Storages.placing(is_cuda, is_cpu):
                return moved.clone()
        if not is_cuda:
            return func(*args, **kwargs)
        args, kwargs = tree_map(_on_cpu, (args, kwargs))
        with _Storages.placing(True, False):
            return func(*args, **kwargs)


class _Storages(TorchDispatchMode):
    """What an operator makes of the device's tensors is on the device."""

    to_device = to_host = False

    def __init__(self, gpu: StandIn) -> None:
        super().__init__()
        self._gpu = gpu

    @classmethod
    @contextmanager
    def placing(cls, to_device: bool, to_host: bool) -> Iterator[None]:
        before = cls.to_device, cls.to_host
        cls.to_device, cls.to_host = to_device, to_host
        try:
            yield
        finally:
            cls.to_device, cls.to_host = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        gpu, kwargs = self._gpu, kwargs or {}
        result = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.to_host or not (self.to_device or any(map(gpu.holds, given))):
            return result
        if func._opname in _PRODUCTS:
            gpu.multiply()
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                gpu.place(leaf)
        return result


def _names_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"


def _names_cpu(value: Any) -> bool:
    return (isinstance(value, torch.device) and value.type == "cpu") or value == "cpu"


def _on_cpu(value: Any) -> Any:
    return "cpu" if _names_cuda(value) else value
