"""The state of a training: its counts, its position in the epoch, and its last metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class TrainingState:
    """The counts of a training at `position` in the order of `epoch`.

    `batch_size` is the current one; `seconds` are of training, without measurements; `loss_sum`
    over `loss_count` is the mean loss of the epoch so far; `metrics` are those of the last epoch.
    """

    batch_size: int
    epoch: int = 0
    position: int = 0
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    loss_sum: Tensor | float = 0.0
    loss_count: float = 0.0
    out_of_memory_events: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
