"""Evaluation after each epoch, and the progress line of a training."""

from __future__ import annotations

from collections.abc import Mapping

from rightbatch._progress import Live
from rightbatch._training.protocol import Observer, StepLoss, TrainingLoop

_PERIOD = 0.5
"""Seconds between two updates of the line, since reading the loss waits for the device."""


class EpochEvaluation(Observer):
    """Evaluates at the end of every epoch, if the workload has an evaluation."""

    def measure_epoch(self, loop: TrainingLoop) -> Mapping[str, float]:
        """Return the metrics of the evaluation."""
        return loop.evaluate()


class ProgressLine(Observer):
    """Shows the epoch, the loss and the speed, at most twice a second."""

    def __init__(self, *, enabled: bool, shows_batch_size: bool = False) -> None:
        self._enabled, self._shows_batch_size = enabled, shows_batch_size
        self._live: Live | None = None
        self._shown = 0.0

    def on_start(self, loop: TrainingLoop) -> None:
        """Open the line."""
        if self._enabled and loop.processes.is_first:
            total = loop.examples * loop.plan.epochs or None
            self._live = Live("train", total=total)
            self._live.__enter__()

    def on_step(self, loop: TrainingLoop, report: StepLoss) -> None:
        """Show the state of the training."""
        at = loop.state
        if self._live is None or at.seconds - self._shown < _PERIOD:
            return
        self._shown = at.seconds
        text = f"epoch {at.epoch + 1} of {loop.plan.epochs}, loss {float(report.mean_loss):.4g}"
        if self._shows_batch_size:
            text += f", batch size {at.batch_size}"
        self._live.show(f"{text}, {at.examples / at.seconds:.3g} examples/s", at.examples)

    def on_end(self, loop: TrainingLoop) -> None:
        """Close the line."""
        if self._live is not None:
            self._live.__exit__(None, None, None)
            self._live = None
