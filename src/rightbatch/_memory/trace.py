"""What a step allocates and frees, in order: recorded from tensors that may be fake.

A dispatch mode sees every operator's outputs. A storage that was not known is an allocation; when
the last reference to it goes, it is a free. Views share their base's storage, and what autograd
saves simply lives longer. Fake tensors (shapes without memory) have storages with the same lives,
so the same recorder serves both, and a real run is the oracle of a fake one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("parameters", "gradients", "optimizer", "activations", "other")
_NORMS = {"native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update"}
_GEMMS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "addmv", "mv", "_addmm_activation"}


@dataclass(frozen=True)
class Trace:
    """One recording.

    `order` has one entry an event: `i` where storage `i` is allocated, `~i` where it is freed.
    `sizes[i]` are its bytes, `kinds[i]` what it is for (one of `KINDS`), `places[i]` the module in
    whose forward it was made. `phases` are (index into `order`, name) where a phase begins.
    `gemms` are the indices where the first matrix product of the forward pass, and of the
    backward pass, happens: the places where cuBLAS takes its workspaces. `operators` are the names
    of what was called, each once.
    """

    order: tuple[int, ...]
    sizes: tuple[int, ...]
    kinds: tuple[str, ...]
    places: tuple[str, ...]
    phases: tuple[tuple[int, str], ...]
    gemms: tuple[int, ...]
    operators: tuple[str, ...]

    def live_bytes(self) -> Iterator[int]:
        """Bytes alive after each event, not rounded."""
        total = 0
        for event in self.order:
            total += self.sizes[event] if event >= 0 else -self.sizes[~event]
            yield total

    @property
    def peak_bytes(self) -> int:
        """The most that was alive at once, not rounded."""
        return max(self.live_bytes(), default=0)

    def breakdown(self) -> dict[str, int]:
        """Bytes by kind at the peak; they add up to it."""
        alive = self._alive_at_peak()
        return {kind: sum(self.sizes[i] for i in alive if self.kinds[i] == kind) for kind in KINDS}

    def activations(self) -> dict[str, int]:
        """Bytes of activations alive at the peak, by the module that made them, largest first."""
        found: dict[str, int] = {}
        for i in self._alive_at_peak():
            if self.kinds[i] == "activations":
                found[self.places[i]] = found.get(self.places[i], 0) + self.sizes[i]
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _alive_at_peak(self) -> set[int]:
        levels = list(self.live_bytes())
        if not levels:
            return set()
        alive: set[int] = set()
        for event in self.order[: levels.index(max(levels)) + 1]:
            if event >= 0:
                alive.add(event)
            else:
                alive.discard(~event)
        return alive

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Trace:
        phases = tuple((int(index), str(name)) for index, name in fields["phases"])
        given = {key: tuple(value) for key, value in fields.items() if key != "phases"}
        return cls(phases=phases, **given)

    def settled(self, times: int) -> Trace:
        """The same with its last training step `times` more times, before the evaluation.

        Fragmentation grows over the first steps. What a step frees of the one before it, the next
        one frees of it: the oldest of the same size.
        """
        starts = [i for i, name in self.phases if name == "zero gradients"]
        stop = next((i for i, name in self.phases if name == "evaluation"), len(self.order))
        if len(starts) < 2:
            return self
        start = starts[-1]
        step = self.order[start:stop]
        made = [e for e in step if e >= 0]
        freed = {~e for e in step if e < 0}
        older = [e for e in self.order[:start] if e >= 0 and e in freed]
        kept = [e for e in made if e not in freed]
        waiting: dict[int, list[int]] = {}
        for e in kept:
            waiting.setdefault(self.sizes[e], []).append(e)
        follows = {e: rest.pop(0) for e in older if (rest := waiting.get(self.sizes[e]))}
        order = list(self.order[:stop])
        sizes, kinds, places = list(self.sizes), list(self.kinds), list(self.places)
        now = {e: e for e in made}  # what stands for an allocation of the step, in its last run
        for _ in range(times):
            new: dict[int, int] = {}
            for event in step:
                if event >= 0:
                    new[event] = len(sizes)
                    order.append(new[event])
                    sizes.append(self.sizes[event])
                    kinds.append(self.kinds[event])
                    places.append(self.places[event])
                elif ~event in new:
                    order.append(~new[~event])
                elif ~event in follows:
                    order.append(~now[follows[~event]])
            now = new
        ends = [~now.get(~e, ~e) if e < 0 else e for e in self.order[stop:]]
        fields = {name: getattr(self, name) for name in Trace.__dataclass_fields__} | {
            "order": (*order, *ends),
            "sizes": tuple(sizes),
            "kinds": tuple(kinds),
            "places": tuple(places),
        }
        return Trace(**fields)

    def is_like(self, other: Trace) -> bool:
        """Whether the same happens in the same order, sizes apart."""
        return self.order == other.order and self.kinds == other.kinds


class Recorder(TorchDispatchMode):
    """Records while it is entered; enter it inside a `FakeTensorMode`, if one is used.

    `hold` takes what existed before, `phase` names what follows, `classify` says what storages are
    for, once that is known. Keeps no reference to any tensor. `temporaries(operator, arguments)`
    are bytes that an operator's kernel takes for itself, one after the other.
    """

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
        leaves = (result,) if isinstance(result, Tensor) else tree_leaves(result)
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                self._add(leaf)
        if self._temporaries is not None:
            for size in self._temporaries(func, args):
                self._pass_by(size)
        return result

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

    def classify_since(self, start: int, kind: str) -> None:
        """What was made since event `start` and is still alive."""
        alive = set(self._known.values())
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


@dataclass(frozen=True)
class Family:
    """Traces of the same step at any batch size: every allocation is a line in it.

    Two traces with the same events, at sizes `low` and `high`, give each allocation's line.
    """

    low: int
    high: int
    at_low: Trace
    at_high: Trace

    def at(self, batch_size: int) -> Trace:
        """The trace at `batch_size`, by the lines through the two that were recorded."""
        if batch_size == self.low:
            return self.at_low
        span, offset = self.high - self.low, batch_size - self.low
        sizes = tuple(
            a + (b - a) * offset // span if a != b else a
            for a, b in zip(self.at_low.sizes, self.at_high.sizes, strict=True)
        )
        fields = {name: getattr(self.at_low, name) for name in Trace.__dataclass_fields__}
        return Trace(**(fields | {"sizes": sizes}))
