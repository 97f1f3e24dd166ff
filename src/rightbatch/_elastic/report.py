"""The report of one update."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from rightbatch._elastic.events import Event


@dataclass(frozen=True)
class StepReport:
    """One update.

    `count` is what the loss averages over (examples or tokens), in all processes together.
    `micro_batches` is the number of parts this process ran in the attempt that succeeded, each of
    at most `micro_batch_size` examples; `attempts` includes the failed ones. `gradient_norm` is
    the norm before clipping, None without clipping. `seconds` is the duration of the call; a GPU
    may still be computing when it returns.
    """

    step: int
    count: float
    micro_batch_size: int
    micro_batches: int
    attempts: int
    seconds: float
    gradient_norm: Tensor | None = field(repr=False)
    mean_loss: Tensor = field(repr=False)
    events: tuple[Event, ...] = ()

    @property
    def loss(self) -> float:
        """The mean loss over this process' batch, before the update. Synchronizes the device."""
        return float(self.mean_loss)
