"""Checkpoints of a training: from time to time, at its end, and on an interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from rightbatch._device import is_out_of_memory
from rightbatch._device.random_state import random_state, seed_all, set_random_state
from rightbatch._training.checkpoint import Checkpoints
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import Observer, StepLoss
from rightbatch._units import format_seconds


class Checkpointing(Observer):
    """Saves a loop and its `others`, observers by name; must be the last observer.

    Ctrl-C and SIGTERM end the training after the current step with a checkpoint; a second Ctrl-C
    ends it at once.
    """

    def __init__(self, checkpoints: Checkpoints, others: Mapping[str, Observer]) -> None:
        self._checkpoints, self._others = checkpoints, others
        self._signal: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def resume(self, loop: WorkloadLoop) -> None:
        """Load the last checkpoint; call it before the loop runs.

        Raises:
            UsageError: if there is none, or it belongs to another training.
        """
        state = self._checkpoints.read_same(self._settings(loop))
        try:
            loop.load_state_dict(state["loop"])
            for name, observer in self._others.items():
                observer.load_state_dict(state["observers"][name])
            if loop.processes.world_size == 1:
                set_random_state(state["random"], loop.device)
            else:
                seed_all(loop.plan.seed + loop.processes.rank + loop.state.steps)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            line = (str(error).splitlines() or [""])[0]
            raise self._checkpoints.mismatch_error(f"{type(error).__name__}: {line}") from error

    def on_start(self, loop: WorkloadLoop) -> None:
        """Install signal handlers, and save a new training once so that it can be resumed."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                kind: signal.signal(kind, self._note) for kind in (signal.SIGINT, signal.SIGTERM)
            }
        if not loop.state.steps:
            self._save(loop)

    def on_step(self, loop: WorkloadLoop, report: StepLoss) -> None:
        """Save if a checkpoint is due, and after the first update, which makes optimizer state.

        Raises:
            KeyboardInterrupt: after a checkpoint, if any process was interrupted.
            UsageError: if a checkpoint does not store the optimizer's state.
        """
        if loop.processes.any(self._signal is not None):
            self._save(loop)
            raise KeyboardInterrupt(
                f"interrupted after {loop.state.steps} updates "
                f"({format_seconds(loop.state.seconds)}); continue with --resume"
            )
        if self._checkpoints.is_due or loop.state.steps == 1:
            self._save(loop)

    def on_epoch(self, loop: WorkloadLoop) -> None:
        """Save after the last epoch."""
        if loop.state.epoch == loop.plan.epochs:
            self._save(loop)

    def on_end(self, loop: WorkloadLoop) -> None:
        """Restore the signal handlers."""
        for kind, handler in self._handlers.items():
            signal.signal(kind, handler)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt(
                "interrupted during a step; continue from the last checkpoint with --resume"
            )
        self._signal = number

    def _settings(self, loop: WorkloadLoop) -> dict[str, Any]:
        return {
            "batch_size": loop.plan.batch_size,
            "adapt": loop.plan.schedule_by_examples,
            "examples": loop.examples,
            "seed": loop.plan.seed,
            "drop_last": loop.workload.drop_last,
        }

    def _save(self, loop: WorkloadLoop) -> None:
        if loop.processes.is_first:
            self._checkpoints.write(
                {
                    "asked": self._settings(loop),
                    "loop": loop.state_dict(),
                    "observers": {name: o.state_dict() for name, o in self._others.items()},
                    "random": random_state(loop.device),
                }
            )
