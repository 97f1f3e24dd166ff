"""Snapshots of what an attempt changes besides gradients: buffers, attributes, random states."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._device.random_state import random_state, set_random_state
from rightbatch._workload.module_attributes import ModuleAttributes


class Snapshot:
    """The model's buffers and attributes and all random states, kept by `take` for `restore`.

    A forward pass updates the running statistics of BatchNorm and the hidden state of a recurrent
    network, and dropout advances the random state; a repeated attempt must start from the same
    values.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._copies: list[Tensor] = []
        self._random: dict[str, Any] = {}
        self._attributes: ModuleAttributes | None = None

    def take(self) -> None:
        """Copy the buffers, attributes and random states."""
        buffers = [
            (module, name, buffer)
            for module in self._model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        are_same = len(buffers) == len(self._buffers) and all(
            new[2] is old[2] for new, old in zip(buffers, self._buffers, strict=True)
        )
        with torch.no_grad():
            if are_same:
                for copy, (_, _, buffer) in zip(self._copies, buffers, strict=True):
                    copy.copy_(buffer)
            else:
                self._buffers = buffers
                self._copies = [buffer.clone() for _, _, buffer in buffers]
        self._attributes = ModuleAttributes(self._model)
        self._random = random_state(self._device)

    def restore(self) -> None:
        """Restore the buffers, attributes and random states of the last `take`."""
        if self._attributes is not None:
            self._attributes.restore()
        with torch.no_grad():
            for (module, name, buffer), copy in zip(self._buffers, self._copies, strict=True):
                buffer.copy_(copy)
                module._buffers[name] = buffer  # the forward pass may have replaced the tensor
        set_random_state(self._random, self._device)
