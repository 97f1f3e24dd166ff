"""The training loop that people write, without anything of rightbatch's but the workload's fields.

What it survives and what it needs is the truth that `fit` and `predict` are held against.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import rightbatch as rb

STEPS = 4
"""Before the evaluation; the allocator's fragments have settled by then, and one step follows."""


class Loop:
    """A workload on a device. `batch` and `loss` stay alive from step to step, as in a script."""

    def __init__(self, workload: rb.Workload, device: str) -> None:
        self.workload, self.device = workload, device
        self.model = workload.model.to(device)
        self.batch: Any = None
        self.loss: Tensor | None = None
        self._scaler = torch.amp.GradScaler(device, enabled=workload.precision == "fp16")

    def load(self, size: int) -> Any:
        w: Any = self.workload
        return w.collate([w.data[index % len(w.data)] for index in range(size)])

    def step(self, size: int) -> None:
        w = self.workload
        self.model.train()
        self.batch = self._moved(self.load(size))
        w.optimizer.zero_grad()
        with self._autocast():
            self.loss = w.loss(self.model, self.batch)
        self._scaler.scale(self.loss).backward()
        self._scaler.step(w.optimizer)
        self._scaler.update()

    def evaluate(self, size: int) -> None:
        self.model.eval()
        batch = self._moved(self.load(size))
        with torch.no_grad(), self._autocast():
            self.workload.loss(self.model, batch)

    def _autocast(self) -> Any:
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.workload.precision)
        return torch.autocast(self.device.split(":")[0], dtype=kind, enabled=kind is not None)

    def _moved(self, batch: Any) -> Any:
        return tree_map_only(Tensor, lambda tensor: tensor.to(self.device), batch)
