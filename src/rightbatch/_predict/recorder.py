"""Records what a step allocates and frees, from tensors that may be fake.

A dispatch mode sees every operator's outputs. A storage that was not known is an allocation; when
the last reference to it goes, it is a free. Views share their base's storage, and what autograd
saves simply lives longer. Fake tensors (shapes without memory) have storages with the same lives,
so the same recorder serves both, and a real run is the oracle of a fake one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from rightbatch._predict.trace import Trace
from rightbatch._workload.batch import Batch, map_tensors, tensors

_NORMS = {
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_batch_norm_with_update",
    "native_layer_norm",
}
_REDUCED_IN_PLACE = {"mse_loss", "smooth_l1_loss", "binary_cross_entropy", "soft_margin_loss"}
"""Their result is made as large as their inputs and then becomes a number, in the same storage."""
_GEMMS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "addmv", "mv", "_addmm_activation"}


class Recorder(TorchDispatchMode):
    """Records while it is entered; enter it inside a `FakeTensorMode`, if one is used.

    `hold` takes what existed before, `phase` names what follows, `classify` says what storages are
    for, once that is known. Keeps no reference to any tensor. `temporaries(operator, arguments)`
    are bytes that an operator's kernel takes for itself, one after the other.
    """

    current: ClassVar[Recorder | None] = None  # the one at work in this process

    def __init__(self, temporaries: Callable[[Any, Any], Iterable[int]] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._temporaries = temporaries
        self.order: list[int] = []
        self._sizes: list[int] = []
        self._kinds: list[str] = []
        self._places: list[str] = []
        self._phases: list[tuple[int, str]] = []
        self._gemms: list[int] = []
        self._known: dict[int, int] = {}
        self._hidden: set[int] = set()
        self._arrived: set[int] = set()
        self._inside: list[str] = []
        self._gemm_in: set[str] = set()
        self._operators: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._operators.add(func._opname)
        if func._opname in _GEMMS:
            # cuBLAS has a workspace per thread, and the backward pass runs in a thread of its own.
            thread = "backward" if self._phases and self._phases[-1][1] == "backward" else "main"
            if thread not in self._gemm_in:
                self._gemm_in.add(thread)
                self._gemms.append(len(self.order))
        result = func(*args, **(kwargs or {}))
        if func._opname in _NORMS:
            # Statistics are kept in fp32; the shapes' functions say the input's type.
            for statistic in result[1:3]:
                self._add(statistic, size=4 * statistic.numel())
        if func._opname in _REDUCED_IN_PLACE and isinstance(result, Tensor) and result.ndim == 0:
            elements = torch.broadcast_shapes(args[0].shape, args[1].shape).numel()
            self._add(result, size=elements * result.element_size())
        leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self._add(leaf)
        if self._temporaries is not None:
            for size in self._temporaries(func, args):
                self._pass_by(size)
        return result

    def __enter__(self) -> Self:
        Recorder.current = self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        Recorder.current = None

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """What is there already; in the order in which it was made."""
        for tensor in tensors:
            self._add(tensor, kind)

    def phase(self, name: str) -> None:
        self._phases.append((len(self.order), name))

    def classify(self, tensors: Iterable[Tensor], kind: str) -> None:
        for tensor in tensors:
            index = self._known.get(tensor.untyped_storage()._cdata)
            if index is not None:
                self._kinds[index] = kind

    def hide(self, tensors: Iterable[Tensor]) -> None:
        """These are not on the device (an optimizer's `step`, say): leave them out."""
        for tensor in tensors:
            index = self._known.get(tensor.untyped_storage()._cdata)
            if index is not None:
                self._hidden.add(index)

    def arrived(self, tensors: Iterable[Tensor]) -> None:
        """These are a batch, whatever else is made along with it."""
        self._arrived |= {self._known[t.untyped_storage()._cdata] for t in tensors if t.nbytes}

    def classify_since(self, start: int, kind: str) -> None:
        """What was made since event `start` and is still alive."""
        alive = set(self._known.values()) - self._arrived
        for event in self.order[start:]:
            if event in alive and event >= 0:
                self._kinds[event] = kind

    @contextmanager
    def naming(self, model: nn.Module) -> Iterator[None]:
        """While entered, allocations know in which module's forward they were made."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name or "model")))
            handles.append(module.register_forward_hook(self._leaving, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._inside.clear()

    def trace(self) -> Trace:
        if self._hidden:
            hidden = self._hidden
            kept = [e for e in self.order if (e if e >= 0 else ~e) not in hidden]
            before = 0
            moved = []  # how many events before each one are left out
            for event in self.order:
                moved.append(before)
                before += (event if event >= 0 else ~event) in hidden
            moved.append(before)
            phases = [(index - moved[index], name) for index, name in self._phases]
            gemms = [index - moved[index] for index in self._gemms]
        else:
            kept, phases, gemms = self.order, self._phases, self._gemms
        return Trace(
            tuple(kept),
            tuple(self._sizes),
            tuple(self._kinds),
            tuple(self._places),
            tuple(phases),
            tuple(gemms),
            tuple(sorted(self._operators)),
        )

    def _entering(self, name: str) -> Callable[..., None]:
        return lambda *_: self._inside.append(name)

    def _leaving(self, *_: Any) -> None:
        if self._inside:
            self._inside.pop()

    def _add(self, tensor: Tensor, kind: str = "other", size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if size is None else size
        if size == 0:
            return
        index = len(self._sizes)
        self._known[key] = index
        self._sizes.append(size)
        self._kinds.append(kind)
        self._places.append(self._inside[-1] if self._inside else "")
        self.order.append(index)
        weakref.finalize(storage, self._drop, key, index)

    def _pass_by(self, size: int) -> None:
        index = len(self._sizes)
        self._sizes.append(size)
        self._kinds.append("other")
        self._places.append("")
        self.order += [index, ~index]

    def _drop(self, key: int, index: int) -> None:
        del self._known[key]
        self.order.append(~index)


def arriving(make: Callable[[], Batch]) -> Batch:
    """A batch that is made on the host and then moved to the device.

    Both are the same machine where a step is followed; a recorder must see the copies only.
    """
    recorder = Recorder.current
    if recorder is None:
        return make()
    with _disable_current_modes():
        batch = make()
    moved = map_tensors(batch, torch.clone)
    recorder.arrived(tensors(moved))
    return moved
