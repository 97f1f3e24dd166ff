"""The parts of Ultralytics' training step, used by the session and the loop."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.torch_utils import autocast

from rightbatch._errors import UsageError


class UltralyticsStep:
    """The step of a trainer that is set up, numerically equal to Ultralytics' own loop."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.is_as_on_cuda = False

    def precision(self) -> Any:
        """Return the trainer's autocast.

        Raises:
            UsageError: for `amp="bf16"` without a GPU, unless the step is run as on one.
        """
        trainer = self._trainer
        amp = trainer.amp
        if not self.is_as_on_cuda:
            check_precision(trainer)
            amp = torch.bfloat16 if trainer.args.amp == "bf16" else amp
        return autocast(amp, device=trainer.device.type)

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Preprocess the batch as the trainer does, and move it to the device."""
        with self.precision():
            prepared: dict[str, Any] = self._trainer.preprocess_batch(batch)
            return prepared

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the summed loss of a prepared batch, a scalar tensor."""
        trainer = self._trainer
        with self.precision():
            if trainer.args.compile:
                predictions = trainer.model(batch["img"])
                loss, trainer.loss_items = trainer.model.loss(batch, predictions)
            else:
                loss, trainer.loss_items = trainer.model(batch)
            total: Tensor = loss.sum()
            return total

    def backward(self, loss: Tensor) -> None:
        """Add the gradients, scaled by the trainer's scaler."""
        self._trainer.scaler.scale(loss).backward()

    def update(self) -> None:
        """Clip, step, and update the averaged weights, as the trainer does."""
        self._trainer.optimizer_step()


def check_precision(trainer: Any) -> None:
    """Check that Ultralytics can train in the precision of `amp`.

    Raises:
        UsageError: for `amp="bf16"` without a GPU.
    """
    if trainer.args.amp == "bf16" and trainer.device.type != "cuda":
        raise UsageError(
            f"Ultralytics trains with amp=bf16 on CUDA only, not on {trainer.device.type}: leave "
            "amp out, or give amp=False"
        )


@contextmanager
def largest_multi_scale() -> Iterator[None]:
    """Make `multi_scale` choose its largest size, which it draws by `random.randrange`."""
    original = random.randrange
    random.randrange = lambda start, stop=None, step=1: (stop or start) - step
    try:
        yield
    finally:
        random.randrange = original
