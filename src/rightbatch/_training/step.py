"""The parts of a training step of a `Workload`, used by everything that trains one.

`PlainStep` is the step of a plain PyTorch loop: one forward and backward pass, one update. Its
method `elastic` returns the same step in parts, which survives out-of-memory errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from rightbatch._elastic import Elastic, Event
from rightbatch._elastic.optimizer_step import closures_refused
from rightbatch._workload.batch import Batch
from rightbatch._workload.forward import forward
from rightbatch._workload.loss import scalar_loss
from rightbatch._workload.precision import autocast, scaler
from rightbatch._workload.without_gradients import without_gradients
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
            UsageError: if the workload's loss is not a scalar tensor with a gradient.
        """
        with self._autocasting():
            return scalar_loss(self.workload.loss(model, batch))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled if the precision is fp16."""
        self.scaler.scale(loss).backward()

    def update(self) -> None:
        """Clip the gradients if the workload sets `clip_norm`, and step the optimizer."""
        w = self.workload
        if w.clip_norm is not None:
            self.scaler.unscale_(w.optimizer)
            nn.utils.clip_grad_norm_(w.model.parameters(), w.clip_norm, foreach=self._foreach)
        with closures_refused(w.optimizer):
            self.scaler.step(w.optimizer)
        self.scaler.update()

    def evaluate(self, batch: Batch) -> Any:
        """Run a batch without gradients: `predict` if the workload has it, else the loss."""
        w = self.workload
        with self._autocasting():
            return without_gradients(w.predict or w.loss, w.model, batch)

    def infer(self, batch: Batch) -> Any:
        """Run inference without gradients: `predict` if the workload has it, else the model.

        Raises:
            UsageError: if the model does not run on the batch's inputs.
        """
        w = self.workload
        with self._autocasting():
            return without_gradients(w.predict or forward, w.model, batch)

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
        """Return the same step in parts that fit; the options are those of `Elastic`.

        The workload's callbacks are called at its attempts and before its updates.
        """
        w, callbacks = self.workload, self.workload.callbacks
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
            before_attempt=callbacks.on_attempt if callbacks else None,
            before_update=callbacks.on_before_update if callbacks else None,
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


def resize_buffers(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give buffers the shapes that they have in a state, as of a bank of features that has grown.

    `load_state_dict` takes no other shape, for good reason where parameters are concerned.
    """
    for name, buffer in list(model.named_buffers()):
        saved = state.get(name)
        if isinstance(saved, Tensor) and saved.shape != buffer.shape:
            path, _, own = name.rpartition(".")
            made = torch.empty_like(saved, device=buffer.device)
            model.get_submodule(path)._buffers[own] = made
