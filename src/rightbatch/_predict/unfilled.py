"""Build modules without filling their weights: large weights take no memory and no time.

Inside `Unfilled`, a large floating-point tensor without values (`torch.empty`) is a memory mapping
whose pages are allocated on first access, so that it takes address space only. Filling it with
random numbers is skipped, and so is whatever would compute with it: conversions of type, copies,
products. Results that are large are unfilled again; small ones are filled with a placeholder.
Tensors that have values, such as a data set's, are computed as always.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from math import prod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from rightbatch._predict.operators import OperatorMode, tensors_in, written_tensors
from rightbatch._predict.unknown_values import UnknownValueError

LARGE = 2**18
"""Elements; smaller tensors are filled, because a constructor may read them."""
HUGE = 2**24
"""Elements; smaller tensors of constants or random numbers, other than parameters, have values,
because they may be a data set's."""
PLACEHOLDER = 0.01
"""The value of small results of unfilled tensors: finite, and no error as a divisor."""
UNINITIALIZED = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
_RANDOM_FILLS = {
    "normal_",
    "uniform_",
    "bernoulli_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
}
_FILLS = {"fill_", "zero_", "copy_"}
_CONSTANTS = {"zeros", "ones", "full", "rand", "randn", "zeros_like", "ones_like", "full_like"}
_CONSTANTS |= {"rand_like", "randn_like", "new_zeros", "new_ones", "new_full", "normal"}
_ZEROS = {"zeros", "zeros_like", "new_zeros"}
_FILLING = _RANDOM_FILLS | _FILLS
_READING = {Tensor.tolist, Tensor.numpy, Tensor.__array__}
"""Functions that read values, and of which a dispatch mode sees nothing."""
_CREATING = UNINITIALIZED | _CONSTANTS
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE, unnamed before Python 3.13


class Unfilled(OperatorMode):
    """Skips the initialization of large tensors and all computation with them."""

    _storages: ClassVar[dict[int, object]] = {}  # storages without values; keys are addresses

    def __enter__(self) -> Self:
        self._reads = _RefusedReads()
        self._reads.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self._reads.__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._opname
        if name in _CREATING:
            return _created(func, name, args, kwargs)
        if name in _FILLING and is_unfilled_target(name, args[0]):
            mark(args[0])
            return args[0]
        if not _has_unfilled(args) and not (kwargs and _has_unfilled(kwargs.values())):
            return func(*args, **kwargs)
        if _is_view(func):
            return func(*args, **kwargs)
        if name == "_local_scalar_dense" and _is_whole(args[0]):
            raise UnknownValueError(str(func))
        if name != "index" and torch.Tag.dynamic_output_shape in func.tags:
            raise UnknownValueError(str(func))  # `unique`, `nonzero`
        inputs = list(tensors_in((args, kwargs)))
        written = list(written_tensors(func, args, kwargs))
        if all(tensor.numel() < LARGE for tensor in inputs):
            result = func(*args, **kwargs)
            for tensor in (*written, *tensors_in(result)):
                if name not in _FILLS or is_unfilled(inputs[-1]):
                    mark(tensor)
            return result
        if not written:
            return _skipped(func, name, args, kwargs)
        if name in _FILLS and not (len(inputs) > 1 and is_unfilled(inputs[-1])):
            return func(*args, **kwargs)  # values, perhaps a data set's
        for tensor in written:
            mark(tensor)
        return written[0] if func._schema.returns else None


class _RefusedReads(TorchFunctionMode):
    """Refuses to hand out whole numbers that were never computed."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _READING and _is_whole(args[0]) and is_unfilled(args[0]):
            raise UnknownValueError(func.__name__)
        return func(*args, **(kwargs or {}))


def _is_whole(tensor: Tensor) -> bool:
    """Return whether values are whole numbers, which are often the size of something."""
    return likely("", tensor.dtype) == 0


def is_unfilled(tensor: Tensor) -> bool:
    """Return whether a tensor's values were never computed."""
    try:
        return tensor.untyped_storage()._cdata in Unfilled._storages
    except NotImplementedError:
        return False  # a sparse tensor


def is_unfilled_target(name: str, tensor: Tensor) -> bool:
    """Return whether an operator in place fills a large tensor, so that it can be skipped."""
    if tensor.numel() < LARGE or not tensor.is_floating_point():
        return False
    if name in _RANDOM_FILLS:
        return True
    return name in _FILLS and (isinstance(tensor, nn.Parameter) or tensor.numel() >= HUGE)


def mark(tensor: Tensor) -> None:
    """Mark the tensor's storage as having no values, for as long as it exists."""
    if tensor.layout != torch.strided:
        return
    storage = tensor.untyped_storage()
    key = storage._cdata
    if key not in Unfilled._storages:
        Unfilled._storages[key] = weakref.finalize(storage, Unfilled._storages.pop, key, None)


def untouched(shape: Any, stride: Any, dtype: torch.dtype, *, is_filled: bool = False) -> Tensor:
    """Return a tensor whose pages are allocated on first access; unfilled, or of zeros.

    Raises:
        MemoryError: if the system grants no address space of that size.
    """
    elements = 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if prod(shape) == 0:
        return torch.empty_strided(shape, stride, dtype=dtype)
    size = elements * dtype.itemsize
    try:
        if sys.platform == "win32":
            memory = mmap.mmap(-1, size)
        else:
            # Shared, because a limit of private memory (RLIMIT_DATA) does not count it.
            flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NO_RESERVE
            memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        raise MemoryError(f"no address space for an unfilled tensor of {size} bytes") from error
    storage = torch.frombuffer(memory, dtype=dtype).untyped_storage()
    tensor = torch.empty(0, dtype=dtype).set_(storage, 0, shape, stride)
    if not is_filled:
        mark(tensor)
    return tensor


def likely(operator: str, dtype: torch.dtype) -> float | bool | int:
    """Return a placeholder for an operator's result of this type, if no value is known.

    Checks of values pass: everything is finite, nothing is NaN.
    """
    if dtype == torch.bool:
        return operator not in {"any", "isnan", "isinf", "ne", "logical_not", "is_nonzero"}
    return PLACEHOLDER if dtype.is_floating_point or dtype.is_complex else 0


def _created(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return a new tensor: a large one of zeros untouched, and one without values unfilled."""
    first = args[0] if args else None
    if isinstance(first, Tensor) and name.endswith("_like"):
        elements = first.numel()
    else:
        sizes = args[1] if isinstance(first, Tensor) and len(args) > 1 else first
        elements = prod(sizes) if isinstance(sizes, list | tuple) else LARGE
    device = kwargs.get("device")
    if elements < LARGE or (device is not None and torch.device(device).type != "cpu"):
        return func(*args, **kwargs)
    meta = _on_meta(func, args, kwargs)
    if not isinstance(meta, Tensor) or meta.layout != torch.strided or meta.numel() < LARGE:
        return func(*args, **kwargs)
    if meta.dtype.is_floating_point:
        if name in _ZEROS:
            return untouched(meta.shape, meta.stride(), meta.dtype, is_filled=True)
        if meta.numel() >= HUGE or name in UNINITIALIZED:
            return untouched(meta.shape, meta.stride(), meta.dtype)
    return func(*args, **kwargs)


def _has_unfilled(arguments: Any) -> bool:
    for argument in arguments:
        if isinstance(argument, Tensor):
            if is_unfilled(argument):
                return True
            if argument.numel() >= HUGE and isinstance(argument, nn.Parameter):
                return True  # of zeros, which take no memory until they are computed with
        elif isinstance(argument, tuple | list) and _has_unfilled(argument):
            return True
    return False


def _skipped(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return results of the right shapes without computing them."""
    try:
        meta = _on_meta(func, args, kwargs)
    except (NotImplementedError, RuntimeError):
        return func(*args, **kwargs)  # has no shapes without values; rare

    def placeholder(like: Tensor) -> Tensor:
        if like.numel() >= LARGE:
            return untouched(like.shape, like.stride(), like.dtype)
        made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        made.fill_(likely(name, like.dtype))
        mark(made)
        return made

    return tree_map_only(Tensor, placeholder, meta)


def _on_meta(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    def to_meta(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
        if isinstance(leaf, torch.device):
            return torch.device("meta")
        return None if isinstance(leaf, torch.Generator) else leaf

    converted = tree_map(to_meta, (args, kwargs))
    has_inputs = any(isinstance(leaf, Tensor) for leaf in tree_leaves(converted))
    if not has_inputs:
        converted[1]["device"] = torch.device("meta")
    converted[1].pop("pin_memory", None)
    return func(*converted[0], **converted[1])


def _is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
