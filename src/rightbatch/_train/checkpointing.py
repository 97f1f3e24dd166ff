"""Checkpoints of a training while it goes on, at its end, and when it is interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from rightbatch._device.random_state import random_state, seed_all, set_random_state
from rightbatch._training.checkpoint import Checkpoints
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import Observer, StepLoss
from rightbatch._units import format_seconds


class Checkpointing(Observer):
    """Saves a loop and the `others` that observe it; comes last of all observers.

    Ctrl-C and SIGTERM end the training between two steps with a checkpoint of where it is; a
    second Ctrl-C ends it at once.
    """

    def __init__(self, checkpoints: Checkpoints, others: Mapping[str, Observer]) -> None:
        self._checkpoints, self._others = checkpoints, others
        self._signal: int | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def resume(self, loop: WorkloadLoop) -> None:
        """Go on from the last checkpoint; call it before the loop runs.

        Raises:
            UsageError: if there is none, or it is of another training.
        """
        state = self._checkpoints.read_same(self._asked(loop))
        loop.load_state_dict(state["loop"])
        for name, observer in self._others.items():
            observer.load_state_dict(state["observers"][name])
        if loop.processes.world_size == 1:
            set_random_state(state["random"], loop.device)
        else:
            seed_all(loop.plan.seed + loop.processes.rank + loop.state.steps)

    def on_start(self, loop: WorkloadLoop) -> None:
        """Take the signals; from here on there is something to resume."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                kind: signal.signal(kind, self._note) for kind in (signal.SIGINT, signal.SIGTERM)
            }
        if not loop.state.steps:
            self._save(loop)

    def on_step(self, loop: WorkloadLoop, report: StepLoss) -> None:
        """Save if it is time.

        Raises:
            KeyboardInterrupt: if a process was interrupted, after a checkpoint.
        """
        if loop.processes.any(self._signal is not None):
            self._save(loop)
            raise KeyboardInterrupt(
                f"interrupted after {loop.state.steps} updates "
                f"({format_seconds(loop.state.seconds)}); --resume goes on from there"
            )
        if self._checkpoints.is_due:
            self._save(loop)

    def on_epoch(self, loop: WorkloadLoop) -> None:
        """Save after the last epoch."""
        if loop.state.epoch == loop.plan.epochs:
            self._save(loop)

    def on_end(self, loop: WorkloadLoop) -> None:
        """Give the signals back."""
        for kind, handler in self._handlers.items():
            signal.signal(kind, handler)
        self._handlers = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt("interrupted at once; --resume goes on from the last save")
        self._signal = number

    def _asked(self, loop: WorkloadLoop) -> dict[str, Any]:
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
                    "asked": self._asked(loop),
                    "loop": loop.state_dict(),
                    "observers": {name: o.state_dict() for name, o in self._others.items()},
                    "random": random_state(loop.device),
                }
            )
