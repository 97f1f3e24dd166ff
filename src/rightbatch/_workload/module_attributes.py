"""What modules keep in attributes: hidden states, counters, lists; no parameters and buffers."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

_COPIED_BYTES, _COPIED_ITEMS = 2**20, 10_000
"""Largest tensor and container that are copied, at every step; larger ones keep what they hold."""
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class ModuleAttributes:
    """The attributes of a model's modules as they are now; `restore` puts them back.

    A recurrent network may keep its hidden state there, which has the size of the last batch.
    Modules of torch itself keep nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self._saved = [
            (module, {name: _saved(value) for name, value in _attributes(module).items()})
            for module in model.modules()
            if not type(module).__module__.startswith("torch.")
        ]

    def restore(self) -> None:
        """Put the attributes back; new ones stay, which a first call may have made for all."""
        for module, saved in self._saved:
            vars(module).update({name: value for name, (value, _) in saved.items()})
            for value, content in saved.values():
                _fill(value, content)

    def restore_tensors(self) -> None:
        """Put back only attributes that hold other tensors now, such as a hidden state."""
        for module, saved in self._saved:
            own = vars(module)
            for name, (value, _) in saved.items():
                if own.get(name) is not value and _holds_tensors(own.get(name)):
                    own[name] = value


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _holds_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    return isinstance(value, Tensor)


def _saved(value: Any) -> tuple[Any, Any]:
    """Return the value, and a copy of its content where that may change."""
    if isinstance(value, Tensor):
        return value, value.clone() if _is_plain(value) else None
    if isinstance(value, list | deque | dict | set) and len(value) <= _COPIED_ITEMS:
        return value, list(value) if isinstance(value, list | deque) else value.copy()
    return value, None


def _is_plain(tensor: Tensor) -> bool:
    """Return whether the tensor's values can be copied and put back, and are few."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_inference():
        return False
    return not tensor.requires_grad and tensor.nbytes <= _COPIED_BYTES


def _fill(value: Any, content: Any) -> None:
    if content is None:
        return
    if isinstance(value, Tensor):
        if value._version:
            value.copy_(content)
    elif isinstance(value, list):
        value[:] = content
    elif isinstance(value, deque):
        value.clear()
        value.extend(content)
    else:
        value.clear()
        value.update(content)
