"""Values of small tensors beside their fake ones, for steps that read them.

A fake tensor has no values, so `x.item()`, `torch.unique(x)` or a boolean mask ends a step that is
followed with fake tensors. `KnownValues` runs every operator on small tensors with known values a
second time, on real ones: constants, batches of few examples, small weights, and what the step
makes of them. What depends on large tensors is unknown. A single number that is unknown can be
assumed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_map_only

from rightbatch._predict.operators import DEVICE, OperatorMode, tensors_in, written_tensors
from rightbatch._predict.unfilled import UNINITIALIZED, is_unfilled, likely, mark
from rightbatch._predict.unknown_values import UnknownValueError

MOST_KEPT_ELEMENTS = 2**16
"""Values of larger tensors are not kept."""
_MOST_ASSUMED = 10_000
"""Assumed values in a trace; more are a loop that waits for a value."""
_DRAWS = 101
_ATTRIBUTE = "_rightbatch_value"
_COLLECTIVE = ("c10d", "_c10d_functional", "fsdp")
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
aten = torch.ops.aten
_MASKED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
_MASKED |= {aten._index_put_impl_.default}


class Value:
    """The real tensor of a fake one.

    `storage` is shared by views: its element says whether the values are still those of the fake
    storage. `is_assumed` says that it stands for an unknown value.
    """

    __slots__ = ("is_assumed", "real", "storage")

    def __init__(
        self, real: Tensor, storage: list[bool] | None = None, is_assumed: bool = False
    ) -> None:
        self.real = real
        self.storage = [True] if storage is None else storage
        self.is_assumed = is_assumed


class KnownValues(OperatorMode):
    """Keeps the values of small tensors; enter it inside `mode`, and a recorder inside it.

    `assume(operator)` is called when a number is read that is not known. It raises if the number
    must not be assumed.
    """

    def __init__(self, mode: FakeTensorMode, assume: Callable[[str], None]) -> None:
        super().__init__()
        self._mode = mode
        self._assume = assume
        self._assumed = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE:
            return func(*args)
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._number(func, args[0])
        if func is aten._unsafe_view.default:
            func = aten.view.default  # the same without memory, and fake tensors remember it
        kind = _kind_of(func)
        if kind.is_sparse and any(leaf.requires_grad for leaf in tensors_in((args, kwargs))):
            # Fake sparse tensors lose their elements, and so the weights' gradients their sizes.
            raise UnknownValueError(str(func))
        values: dict[int, Value] = {}
        is_known = func.namespace not in _COLLECTIVE  # what other processes send is unknown
        for leaf in tensors_in((args, kwargs)):
            value = self._value(leaf)
            if value is None:
                is_known = False
            else:
                values[id(leaf)] = value
        if is_known:
            return self._computed(func, kind, args, kwargs, values)
        if func is aten.masked_select.default and id(args[1]) in values:
            return aten.new_empty.default(args[0], [_selected(args[0], values[id(args[1])].real)])
        if values and func in _MASKED:
            indices = [self._indices(i, values) for i in args[1]]
            args = (args[0], [i for some in indices for i in some], *args[2:])
        result = func(*args, **kwargs)
        _forget(func, args, kwargs, values)
        if isinstance(result, Tensor) and result.numel() == 1:
            _assume_number(func, result)
        return result

    def _computed(
        self, func: Any, kind: _Kind, args: Any, kwargs: dict[str, Any], values: dict[int, Value]
    ) -> Any:
        """Return fake results with their values; all inputs are known."""
        is_assumed = any(value.is_assumed for value in values.values())
        if kind.depends_on_values:
            if is_assumed:
                self._count_assumed(func)
            real = _on_values(func, kind, args, kwargs, values)
            return tree_map_only(Tensor, lambda t: fake_with_value(t, self._mode), real)
        result = func(*args, **kwargs)
        leaves = list(tensors_in(result))
        try:
            if any(leaf.numel() > MOST_KEPT_ELEMENTS for leaf in leaves):
                raise NotImplementedError
            real = _on_values(func, kind, args, kwargs, values)
        except Exception:  # the CPU has not every kernel in every type
            _forget(func, args, kwargs, values)
            return result
        for written in written_tensors(func, args, kwargs):
            values[id(written)].is_assumed |= is_assumed
        storages: dict[int, list[bool]] = {}
        if kind.is_alias:
            storages = {v.real.untyped_storage()._cdata: v.storage for v in values.values()}
        for leaf, computed in zip(leaves, tensors_in(real), strict=False):
            if computed.layout == torch.strided:
                storage = storages.get(computed.untyped_storage()._cdata) if storages else None
                _attach(leaf, Value(computed, storage, is_assumed))
        return result

    def _value(self, tensor: Tensor) -> Value | None:
        """Return what is known of a tensor."""
        if not isinstance(tensor, FakeTensor):
            if tensor.numel() > MOST_KEPT_ELEMENTS or type(tensor) not in _PLAIN:
                return None
            tensor = fake_with_value(tensor, self._mode)
        return _attached(tensor)

    def _number(self, func: Any, tensor: Tensor) -> Any:
        value = self._value(tensor)
        if value is None:
            return func(tensor)  # raises an error with the operator's name
        if value.is_assumed:
            self._count_assumed(func)
        with no_dispatch():
            return func(value.real)

    def _count_assumed(self, func: Any) -> None:
        self._assumed += 1
        if self._assumed > _MOST_ASSUMED:
            raise UnknownValueError(str(func))
        self._assume(str(func))

    def _indices(self, index: Tensor | None, values: dict[int, Value]) -> list[Tensor | None]:
        """Return an index, or for a known mask the indices of what it selects."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        value = values.get(id(index))
        if value is None:
            return [index]
        with no_dispatch():
            found = value.real.nonzero(as_tuple=True)
        return [fake_with_value(one, self._mode) for one in found]


def fake_with_value(real: Tensor, mode: FakeTensorMode) -> Tensor:
    """Return a fake tensor of `real`, with its values if it is small; a fake one as it is."""
    if isinstance(real, FakeTensor):
        return real
    fake = mode.from_tensor(real)
    is_plain = type(real) in _PLAIN and real.layout == torch.strided
    if real.numel() > MOST_KEPT_ELEMENTS or not is_plain:
        return fake
    is_unknown = is_unfilled(real)
    if _attached(fake) is None and (not is_unknown or real.numel() == 1):
        with no_dispatch():
            _attach(fake, Value(real.detach(), None, is_unknown))
    return fake


class _Kind(NamedTuple):
    """What an operator does with its tensors and their values."""

    is_alias: bool
    is_random: bool
    is_uninitialized: bool
    depends_on_values: bool
    is_sparse: bool


@cache
def _kind_of(func: Any) -> _Kind:
    if not isinstance(func, torch._ops.OpOverload):
        return _Kind(False, False, False, False, False)
    schema = func._schema
    return _Kind(
        is_alias=any(returned.alias_info is not None for returned in schema.returns),
        is_random=torch.Tag.nondeterministic_seeded in func.tags,
        is_uninitialized=func._opname in UNINITIALIZED,
        depends_on_values=not {
            torch.Tag.dynamic_output_shape,
            torch.Tag.data_dependent_output,
        }.isdisjoint(func.tags),
        is_sparse=func._opname.startswith("_sparse_coo_tensor"),
    )


def _attach(fake: Tensor, value: Value) -> None:
    fake.__dict__[_ATTRIBUTE] = value


def _attached(fake: Tensor) -> Value | None:
    value: Value | None = fake.__dict__.get(_ATTRIBUTE)
    if value is None or not value.storage[0] or value.real.shape != fake.shape:
        return None
    return value if value.real.dtype == fake.dtype else None


def _on_values(
    func: Any, kind: _Kind, args: Any, kwargs: dict[str, Any], values: dict[int, Value]
) -> Any:
    """Run an operator on the values of its arguments."""
    args, kwargs = tree_map_only(Tensor, lambda leaf: values[id(leaf)].real, (args, kwargs))
    with no_dispatch():
        if kind.is_random and kwargs.get("generator") is None:
            return _drawn(func, args, kwargs)
        real = func(*args, **kwargs)
        return real.zero_() if kind.is_uninitialized else real


def _drawn(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Draw random numbers that do not depend on what was drawn before, so on the batch size.

    A single one is the median of many, so that a step takes its likely branch.
    """
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(0)
    try:
        real = func(*args, **kwargs)
        if isinstance(real, Tensor) and real.numel() == 1:
            draws = sorted(func(*args, **kwargs).item() for _ in range(_DRAWS))
            real.fill_(draws[_DRAWS // 2])
        return real
    finally:
        generator.set_state(state)


def _forget(func: Any, args: Any, kwargs: dict[str, Any], values: dict[int, Value]) -> None:
    """Forget the values of what an operator has written."""
    for tensor in written_tensors(func, args, kwargs):
        value = values.get(id(tensor))
        if value is None:
            continue
        value.storage[0] = False
        mark(value.real)  # a real tensor of the user's: its fake one can be made again
        if tensor.numel() == 1 and isinstance(tensor, FakeTensor):
            _attach(tensor, Value(value.real, None, is_assumed=True))


def _assume_number(func: Any, fake: Tensor) -> None:
    """Give a single number a likely value; whole numbers are mostly indices and have none."""
    if fake.dtype == torch.bool or fake.dtype.is_floating_point:
        if isinstance(fake, FakeTensor) and _attached(fake) is None:
            with no_dispatch():
                real = torch.full(fake.shape, likely(func._opname, fake.dtype), dtype=fake.dtype)
            _attach(fake, Value(real, None, is_assumed=True))


def _selected(tensor: Tensor, mask: Tensor) -> int:
    """Return how many elements a mask selects after both are broadcast."""
    elements: int = torch.broadcast_shapes(tensor.shape, mask.shape).numel()
    with no_dispatch():
        return int(mask.sum()) * (elements // max(mask.numel(), 1))
