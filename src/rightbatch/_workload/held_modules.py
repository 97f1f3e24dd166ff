"""Modules that a loss uses beside the model: a frozen teacher, a perceptual loss, a criterion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from rightbatch._errors import UsageError
from rightbatch._workload.workload import Workload

_DEPTH = 4


def held_modules(workload: Workload) -> list[nn.Module]:
    """Return the modules that `loss` and `predict` use and that are no part of the model.

    They are found in closures, in the globals that a function names, in `functools.partial`, and
    in attributes of callable objects.
    """
    known = {id(module) for module in workload.model.modules()}
    found: list[nn.Module] = []
    for function in (workload.loss, workload.predict):
        for module in _modules_in(function, _DEPTH):
            if id(module) not in known:
                known |= {id(inner) for inner in module.modules()}
                found.append(module)
    return found


def move_modules(workload: Workload, device: str | torch.device) -> None:
    """Move the model and the modules that its loss uses to a device."""
    for module in (workload.model, *held_modules(workload)):
        module.to(device)


def check_optimizer(workload: Workload) -> None:
    """Check that the optimizer trains the model's parameters only.

    Others would not be moved, cleared before a retry, clipped, reduced, nor saved with the model.

    Raises:
        UsageError: if it has a parameter that requires a gradient and is not the model's.
    """
    known = {id(parameter) for parameter in workload.model.parameters()}
    groups = workload.optimizer.param_groups
    outside = [p for g in groups for p in g["params"] if p.requires_grad and id(p) not in known]
    if outside:
        shapes = ", ".join(str(tuple(parameter.shape)) for parameter in outside[:3])
        more = ", …" if len(outside) > 3 else ""
        raise UsageError(
            f"{type(workload.optimizer).__name__} has {len(outside)} parameters that are not the "
            f"model's, of shape {shapes}{more}. If the loss has weights of its own, make them a "
            "part of the model before the optimizer is made (model.criterion = criterion); if a "
            "layer was replaced, make the optimizer afterwards"
        )


def _modules_in(value: Any, depth: int) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif depth > 0:
        for inner in _used_by(value):
            yield from _modules_in(inner, depth - 1)


def _used_by(value: Any) -> Iterator[Any]:
    """Iterate over what a function, a callable object or a container refers to."""
    if isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
        yield from _cells(value)
        for name in _names(value.__code__):
            used = value.__globals__.get(name)
            is_own = isinstance(used, FunctionType) and used.__module__ == value.__module__
            if is_own or isinstance(used, nn.Module | partial):
                yield used
    elif isinstance(value, Callable) and not isinstance(value, type):  # type: ignore[arg-type]
        yield from vars(value).values() if hasattr(value, "__dict__") else ()


def _cells(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is not assigned yet
            continue


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
