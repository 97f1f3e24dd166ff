"""Record the allocations and frees of a step on real or fake tensors.

A dispatch mode sees every operator's outputs. A new storage is an allocation, the end of its last
reference a free. Views share their base's storage; tensors saved by autograd live longer. Fake
tensors (shapes without memory) have storages with the same lifetimes, so one recorder serves both,
and tests compare fake with real runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from rightbatch._predict.kernel_limits import limited_use
from rightbatch._predict.operators import DEVICE, OperatorMode
from rightbatch._predict.sharding import (
    StreamNumbers,
    is_sharded_call,
    local_part,
    only_memory_shown,
)
from rightbatch._predict.trace import BUFFER, Sum, Trace, with_frees_in_order
from rightbatch._workload.batch import Batch, map_tensors, tensors
from rightbatch._workload.leaf import dense_parts

_NORMS = {
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_batch_norm_with_update",
    "native_layer_norm",
}
_REDUCED_IN_PLACE = {"mse_loss", "smooth_l1_loss", "binary_cross_entropy", "soft_margin_loss"}
"""Their result is allocated as large as the inputs, and then reduced in the same storage."""
_GEMMS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "addmv", "mv", "_addmm_activation"}
_Sum = tuple[tuple[int, ...], tuple[int, ...], int]


class Recorder(OperatorMode):
    """Records inside its context; enter it inside a `FakeTensorMode`, if one is used.

    `hold` adds existing tensors, `phase` starts a named phase, `classify` sets the kind of storages
    once it is known. Keeps no reference to a tensor. `sum_of(operator, arguments)` returns shape,
    summed dimensions and element size of a sum whose kernel allocates buffers and frees them.
    """

    current: ClassVar[Recorder | None] = None  # the active recorder of this process

    def __init__(self, sum_of: Callable[[Any, Any], _Sum | None] | None = None) -> None:
        super().__init__()
        self._sum_of = sum_of
        self._sums: list[Sum] = []
        self.order: list[int] = []
        self._sizes: list[int] = []
        self._kinds: list[str] = []
        self._places: list[str] = []
        self._phases: list[tuple[int, str]] = []
        self._gemms: list[int] = []
        self._known: dict[int, int] = {}  # storage -> its index
        self._hidden: set[int] = set()
        self._classified: set[int] = set()  # what `classify_since` leaves unchanged
        self._modules: list[str] = []  # the modules whose forward pass is running
        self._gemm_threads: set[str] = set()
        self._operators: set[str] = set()
        self._uses: dict[str, int] = {}
        self._streams: list[int] = []
        self._stream_of: Callable[[], int] | None = None
        self._emptied: set[int] = set()  # storages that exist and have no memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):  # the most frequent by far
            return args[0].fake_device
        if self._stream_of is not None and is_sharded_call(types):
            return NotImplemented  # it calls operators on this process's parts, which are recorded
        self._operators.add(func._opname)
        if func._opname in _GEMMS:
            # cuBLAS has a workspace per thread, and the backward pass runs in its own thread.
            thread = "backward" if self._phases and self._phases[-1][1] == "backward" else "main"
            if thread not in self._gemm_threads:
                self._gemm_threads.add(thread)
                self._gemms.append(len(self.order))
        result = func(*args, **(kwargs or {}))
        if func._opname in _NORMS:
            # CUDA keeps the statistics in fp32; fake tensors report the input's type.
            for statistic in result[1:3]:
                self._add(statistic, size=4 * statistic.numel())
        if func._opname in _REDUCED_IN_PLACE and isinstance(result, Tensor) and result.ndim == 0:
            elements = torch.broadcast_shapes(args[0].shape, args[1].shape).numel()
            self._add(result, size=elements * result.element_size())
        leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self._add(leaf)
        if self._sum_of is not None:
            found = self._sum_of(func, args)
            if found is not None:
                self._add_buffers(Sum(len(self._sizes), *found))
            use = limited_use(func, args, result)
            if use is not None:
                self._uses[use[0]] = max(use[1], self._uses.get(use[0], 0))
        return result

    def __enter__(self) -> Self:
        Recorder.current = self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        Recorder.current = None

    def hold(self, tensors: Iterable[Tensor], kind: str, place: str = "") -> None:
        """Add existing tensors of a module, in the order in which they were allocated."""
        self._modules.append(place)
        for tensor in tensors:
            self._add(tensor, kind)
        self._modules.pop()

    def phase(self, name: str) -> None:
        """Start a phase."""
        self._phases.append((len(self.order), name))

    def classify(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Set the kind of these tensors' storages."""
        for tensor in tensors:
            for index in self._indices(tensor):
                self._kinds[index] = kind

    def hide(self, tensors: Iterable[Tensor]) -> None:
        """Leave out tensors that are not on the device, such as an optimizer's `step`."""
        for tensor in tensors:
            self._hidden.update(self._indices(tensor))

    def mark_batch(self, tensors: Iterable[Tensor]) -> None:
        """Mark tensors as a batch, which `classify_since` leaves unchanged."""
        for tensor in tensors:
            self._classified.update(self._indices(tensor))

    def classify_since(self, start: int, kind: str) -> None:
        """Set the kind of the storages allocated since event `start` that are still alive."""
        alive = set(self._known.values()) - self._classified
        for event in self.order[start:]:
            if event in alive and event >= 0:
                self._kinds[event] = kind

    @contextmanager
    def naming(self, model: nn.Module) -> Iterator[None]:
        """Record the module whose forward pass makes an allocation, inside the context."""
        handles = []
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            handles.append(module.register_forward_pre_hook(self._push_module(name or "model")))
            handles.append(module.register_forward_hook(self._pop_module, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._modules.clear()

    @contextmanager
    def sharded(self) -> Iterator[None]:
        """Record a sharded step: its streams, and storages that are emptied and filled again."""
        with only_memory_shown(self._resized):
            self._stream_of = StreamNumbers()
            yield

    def trace(self) -> Trace:
        """Return the recording without the hidden tensors."""
        if self._hidden:
            hidden = self._hidden
            kept = [e for e in self.order if (e if e >= 0 else ~e) not in hidden]
            omitted = 0
            shifts = []  # the number of omitted events before each event
            for event in self.order:
                shifts.append(omitted)
                omitted += (event if event >= 0 else ~event) in hidden
            shifts.append(omitted)
            phases = [(index - shifts[index], name) for index, name in self._phases]
            gemms = [index - shifts[index] for index in self._gemms]
        else:
            kept, phases, gemms = self.order, self._phases, self._gemms
        starts = [index for index, _ in phases]
        return Trace(
            with_frees_in_order(kept, [*starts, *gemms]),
            tuple(self._sizes),
            tuple(self._kinds),
            tuple(self._places),
            tuple(phases),
            tuple(gemms),
            tuple(sorted(self._operators)),
            tuple(sorted(self._uses.items())),
            tuple(self._sums),
            tuple(self._streams) if any(self._streams) else (),
        )

    def _push_module(self, name: str) -> Callable[..., None]:
        return lambda *_: self._modules.append(name)

    def _pop_module(self, *_: Any) -> None:
        if self._modules:
            self._modules.pop()

    def _indices(self, tensor: Tensor) -> list[int]:
        """Return the indices of the allocations of a tensor that are known."""
        keys = [part.untyped_storage()._cdata for part in dense_parts(local_part(tensor))]
        return [self._known[key] for key in keys if key in self._known]

    def _add(self, tensor: Tensor, kind: str = "other", size: int | None = None) -> None:
        for part in dense_parts(local_part(tensor)):
            self._add_dense(part, kind, size)

    def _add_dense(self, tensor: Tensor, kind: str, size: int | None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if size is None else size
        if size == 0:
            return
        self._known[key] = self._allocate(size, kind, self._modules[-1] if self._modules else "")
        weakref.finalize(storage, self._free, key)

    def _add_buffers(self, of: Sum) -> None:
        self._sums.append(of)
        for size in of.buffer_sizes():
            self.order.append(~self._allocate(size, "other", BUFFER))

    def _allocate(self, size: int, kind: str, place: str) -> int:
        index = len(self._sizes)
        self._sizes.append(size)
        self._kinds.append(kind)
        self._places.append(place)
        self._streams.append(0 if self._stream_of is None else self._stream_of())
        self.order.append(index)
        return index

    def _free(self, key: int) -> None:
        self._emptied.discard(key)
        if key in self._known:
            self.order.append(~self._known.pop(key))

    def _resized(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata
        if key in self._known and size == 0:
            self._kinds[self._known[key]] = "parameters"
            self._free(key)
            self._emptied.add(key)
        elif key not in self._known and size:
            if key not in self._emptied:  # emptied before this recording
                weakref.finalize(storage, self._free, key)
            self._emptied.discard(key)
            self._known[key] = self._allocate(size, "parameters", "")
            self._classified.add(self._known[key])


def transfer_batch(make: Callable[[], Batch]) -> Batch:
    """Return a batch that `make` creates on the host, as if it was moved to the device.

    When a step is followed, host and device are the same: the active recorder sees the copies only.
    """
    recorder = Recorder.current
    if recorder is None:
        return make()
    with _disable_current_modes():
        batch = make()
    moved = map_tensors(batch, torch.clone)
    recorder.mark_batch(tensors(moved))
    return moved
