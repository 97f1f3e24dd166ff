"""What an attempt may change besides gradients: the model's buffers and every random state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._device.random_state import random_state, set_random_state


class StateBefore:
    """Buffers and random states as they were at `take`, put back by `restore`.

    BatchNorm counts in its buffers whatever it has seen, and dropout would draw other masks.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._copies: list[Tensor] = []
        self._random: dict[str, Any] = {}

    def take(self) -> None:
        buffers = [
            (module, name, buffer)
            for module in self._model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        same = len(buffers) == len(self._buffers) and all(
            new[2] is old[2] for new, old in zip(buffers, self._buffers, strict=True)
        )
        with torch.no_grad():
            if same:
                for copy, (_, _, buffer) in zip(self._copies, buffers, strict=True):
                    copy.copy_(buffer)
            else:
                self._buffers = buffers
                self._copies = [buffer.clone() for _, _, buffer in buffers]
        self._random = random_state(self._device)

    def restore(self) -> None:
        with torch.no_grad():
            for (module, name, buffer), copy in zip(self._buffers, self._copies, strict=True):
                buffer.copy_(copy)
                module._buffers[name] = buffer  # it may have been replaced instead of written to
        set_random_state(self._random, self._device)
