"""The share of a micro-batch in its update, as a Transformers `Trainer` scales its loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch._device.random_state import random_state, set_random_state
from rightbatch.integrations.transformers._batch import TrainerBatches, copied


class LossScale:
    """The factor of the mean loss of a micro-batch before it is added to the update's."""

    def __init__(self, trainer: Any, batches: TrainerBatches) -> None:
        self._trainer, self._batches = trainer, batches
        self._ignores_items: bool | None = None

    def of(self, model: nn.Module, inputs: Any, labels: float, items: Tensor | int | None) -> float:
        """Return the factor for a micro-batch of `labels` in an update of `items`, if counted."""
        trainer = self._trainer
        accumulation = trainer.current_gradient_accumulation_steps
        is_share = getattr(trainer, "loss_is_scaled_for_ga", None)
        if is_share is None:
            is_share = items is not None or trainer.compute_loss_func is not None
        if not is_share:
            return float(1 / accumulation)
        if items is None or (accumulation > 1 and self._is_a_mean(model, inputs)):
            return 1.0  # the trainer adds the means, whatever their number
        return labels / max(float(items), 1.0)

    def _is_a_mean(self, model: nn.Module, inputs: Any) -> bool:
        """Return whether the loss does not depend on `num_items_in_batch`, which it is given.

        It is computed for one example with two numbers of items, until one says so.
        """
        if self._ignores_items is None:
            part = self._batches.split(inputs, 1)[0]
            if self._batches.count(part):
                self._ignores_items = self._compared(model, part)
        return bool(self._ignores_items)

    def _compared(self, model: nn.Module, part: Any) -> bool | None:
        trainer, device = self._trainer, next(model.parameters()).device
        before, was_training = random_state(device), model.training
        model.eval()
        try:
            with torch.no_grad(), trainer.compute_loss_context_manager():
                one, two = (
                    float(
                        trainer.compute_loss(
                            model, copied(part), num_items_in_batch=torch.tensor(n, device=device)
                        )
                    )
                    for n in (1, 2)
                )
        except Exception:  # a loss may need more than one example
            return None
        finally:
            model.train(was_training)
            set_random_state(before, device)
        return one == two if one and math.isfinite(one) else None
