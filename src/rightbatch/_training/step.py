"""The parts of a training step of a `Workload`, used by everything that trains one.

`PlainStep` is the step of a plain PyTorch loop: one forward and backward pass, one update. Its
method `elastic` returns the same step in parts, which survives out-of-memory errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from rightbatch._elastic import Elastic, Event
from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch
from rightbatch._workload.precision import autocast, scaler
from rightbatch._workload.workload import Workload


class PlainStep:
    """The step of a workload whose model and optimizer state are on `device`.

    `autocasting` replaces the workload's autocast, `gradient_scaler` its scaler; `foreach` is the
    argument of gradient clipping.
    """

    def __init__(
        self,
        workload: Workload,
        device: str | torch.device,
        *,
        autocasting: Callable[[], Any] | None = None,
        gradient_scaler: torch.amp.GradScaler | None = None,
        foreach: bool | None = None,
    ) -> None:
        self.workload = workload
        self.device = torch.device(device)
        self._autocasting = autocasting or (lambda: autocast(workload, device))
        self.scaler = gradient_scaler or scaler(workload, device)
        self._foreach = foreach

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over a batch that is on the device.

        Raises:
            UsageError: if the workload's loss is not a scalar tensor.
        """
        with self._autocasting():
            loss = self.workload.loss(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise UsageError(
                f"Workload.loss returns a scalar tensor, not {type(loss).__name__}"
                + (f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else "")
            )
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled if the precision is fp16."""
        self.scaler.scale(loss).backward()

    def update(self) -> None:
        """Clip the gradients if the workload sets `clip_norm`, and step the optimizer."""
        w = self.workload
        if w.clip_norm is not None:
            self.scaler.unscale_(w.optimizer)
            nn.utils.clip_grad_norm_(w.model.parameters(), w.clip_norm, foreach=self._foreach)
        self.scaler.step(w.optimizer)
        self.scaler.update()

    def evaluate(self, batch: Batch) -> Any:
        """Run a batch without gradients: `predict` if the workload has it, else the loss."""
        w = self.workload
        with torch.no_grad(), self._autocasting():
            return w.predict(w.model, batch) if w.predict is not None else w.loss(w.model, batch)

    def elastic(
        self,
        *,
        micro_batch_size: int | str,
        scheduler: LRScheduler | None = None,
        on_event: Callable[[Event], object],
        group: Any = None,
        memory: int | str | None = None,
        margin: float = 0.05,
    ) -> Elastic:
        """Return the same step in parts that fit; the options are those of `Elastic`."""
        w = self.workload
        return Elastic(
            w.model,
            w.optimizer,
            self.loss,
            micro_batch_size=micro_batch_size,
            count=w.count,
            split=w.split,
            scaler=self.scaler,
            clip_norm=w.clip_norm,
            scheduler=scheduler,
            on_event=on_event,
            group=group,
            memory=memory,
            margin=margin,
        )


def move_state(optimizer: torch.optim.Optimizer, device: str | torch.device) -> None:
    """Move the optimizer's existing state; its parameters were moved with the model."""
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor) and key != "step":
                state[key] = value.to(device)
