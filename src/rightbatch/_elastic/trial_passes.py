"""Forward and backward passes before the first update: they measure, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from rightbatch._device import is_out_of_memory
from rightbatch._elastic.exactness import EXAMPLES, Exactness, compare_gradients
from rightbatch._elastic.gradient_hooks import GradientHooks
from rightbatch._elastic.gradients import Loss
from rightbatch._elastic.initial_size import InitialSize, find_initial_size
from rightbatch._errors import UsageError
from rightbatch._workload.batch import Batch, to_device


class TrialPasses:
    """Runs a few examples of a batch without an update.

    `save` keeps what a pass changes, and `restore` restores it and removes the gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        count: Callable[[Batch], float],
        split: Callable[[Batch, int], Sequence[Batch]],
        device: torch.device,
        save: Callable[[], object],
        restore: Callable[[], object],
    ) -> None:
        self._model, self._loss = model, loss
        self._count, self._split = count, split
        self._device = device
        self._save, self._restore = save, restore

    def exactness(self, batch: Batch) -> tuple[Exactness | None, str]:
        """Compare parts with the whole; return the result, and a warning if they are not equal.

        There is no result if the loss fails with parts of so few examples.

        Raises:
            UsageError: if the loss is not one that `Elastic` takes.
        """
        found: Exactness | None = None
        warning = ""
        self._save()
        try:
            few = to_device(self._split(batch, EXAMPLES)[0], self._device)
            found = compare_gradients(
                self._model,
                self._loss,
                few,
                self._split,
                self._count,
                self._device,
                self._restore,
            )
        except UsageError:
            raise
        except Exception as error:  # a loss may take only multiples of some number
            if not is_out_of_memory(error):
                size = min(EXAMPLES, len(self._split(batch, 1)))
                reason = f"{type(error).__name__}: {error}"
                warning = f"parts of {size} examples could not be compared: {reason}"
        self._restore()
        if found is not None and not found.is_exact:
            warning = str(found)
        return found, warning

    def initial_size(
        self, batch: Batch, optimizer: Optimizer, *, limit: int | None, margin: float, least: int
    ) -> InitialSize:
        """Measure the size of a part as `find_initial_size` does, with the examples of `batch`."""
        self._save()

        def run(n: int) -> None:
            part = to_device(self._split(batch, n)[0], self._device)
            loss = self._loss(self._model, part)
            with GradientHooks(list(self._model.parameters())).postponed():
                loss.backward()
            self._restore()

        return find_initial_size(
            run,
            optimizer,
            len(self._split(batch, 1)),
            device=self._device,
            limit=limit,
            margin=margin,
            least=least,
        )
