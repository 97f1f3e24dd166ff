"""What a framework's trainer does around the steps of a training, for `Workload.callbacks`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingRun:
    """A training that begins: `epochs` of `steps_per_epoch` updates by `batch_size` examples.

    `writes_model` says that its result is the trained model, as in `train`; `tune` and `study`
    measure. `evaluate` evaluates now and returns the metrics, `stop` ends the training after this
    step.
    """

    batch_size: int
    epochs: int
    steps_per_epoch: int
    processes: int
    writes_model: bool
    evaluate: Callable[[], Mapping[str, float]]
    stop: Callable[[str], None]


class WorkloadCallbacks:
    """Callbacks of a workload's training loop; subclass and override.

    Probes, which run single steps, do not call them.
    """

    def on_start(self, run: TrainingRun) -> None:
        """Called when the model is on its device, before the schedule is made."""

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first step of an epoch, and after a resume."""

    def on_step_start(self, batch: Any, index: int) -> None:
        """Called before an update, with its batch and the index of the batch in the epoch."""

    def on_attempt(self) -> None:
        """Called before the first part of an update; again before a retry if memory runs out.

        Losses that are computed between `on_step_start` and the first call are those of probes.
        """

    def on_before_update(self) -> None:
        """Called when the gradients are complete, before clipping; again if memory runs out."""

    def on_step_end(self, batch: Any, index: int, loss: Any) -> None:
        """Called after an update; `loss` is its mean loss, a scalar tensor."""

    def on_evaluation_start(self) -> None:
        """Called before the evaluation data's losses and the workload's `evaluate`."""

    def on_evaluation_end(self) -> None:
        """Called after an evaluation, also after an error in it."""

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Called after an epoch with its metrics."""

    def on_end(self) -> None:
        """Called after the last step, not after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""


class StepCallbacks(WorkloadCallbacks):
    """The callbacks around steps of others, for a training that branches off theirs."""

    def __init__(self, others: WorkloadCallbacks) -> None:
        self._others = others

    def on_step_start(self, batch: Any, index: int) -> None:
        """Forward the call."""
        self._others.on_step_start(batch, index)

    def on_attempt(self) -> None:
        """Forward the call."""
        self._others.on_attempt()

    def on_before_update(self) -> None:
        """Forward the call."""
        self._others.on_before_update()

    def on_step_end(self, batch: Any, index: int, loss: Any) -> None:
        """Forward the call."""
        self._others.on_step_end(batch, index, loss)
