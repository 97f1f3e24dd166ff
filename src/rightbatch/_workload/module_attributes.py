"""What modules keep in attributes: hidden states, counters, lists; no parameters and buffers."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

_COPIED_BYTES = 16 * 2**20
"""Largest tensor that is copied; a larger one is put back, but not its values."""
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
        """Put the attributes back, and remove those that are new."""
        for module, saved in self._saved:
            own = vars(module)
            for name in _attributes(module).keys() - saved.keys():
                del own[name]
            for name, (value, content) in saved.items():
                own[name] = value
                _fill(value, content)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}


def _saved(value: Any) -> tuple[Any, Any]:
    """Return the value, and a copy of its content where that may change."""
    if isinstance(value, list | deque):
        return value, list(value)
    if isinstance(value, dict | set):
        return value, value.copy()
    if isinstance(value, Tensor) and not value.requires_grad and value.layout is torch.strided:
        return value, value.clone() if value.nbytes <= _COPIED_BYTES else None
    return value, None


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
