"""The files in the folder of a training: history, events, and the final weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from rightbatch._elastic import Event
from rightbatch._elastic.events import log_event
from rightbatch._json import to_json
from rightbatch._training.checkpoint import make_folder, refuse_links
from rightbatch._training.loop import WorkloadLoop
from rightbatch._training.protocol import Observer

HISTORY, EVENTS, WEIGHTS = "history.jsonl", "events.jsonl", "model.pt"


class TrainingFiles(Observer):
    """Writes `history.jsonl` (a line per epoch), `events.jsonl` (a line per event), `model.pt`.

    Only the first process writes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_start(self, loop: WorkloadLoop) -> None:
        """Create the folder; after a resume, drop the lines written after the checkpoint.

        Raises:
            UsageError: if a file to write is a link.
        """
        if not loop.processes.is_first:
            return
        make_folder(self._folder)
        refuse_links(self._folder / name for name in (HISTORY, EVENTS, WEIGHTS))
        steps = loop.state.steps
        self._keep(HISTORY, lambda line: line["steps"] <= steps)
        self._keep(EVENTS, lambda line: line["step"] < steps)

    def on_epoch(self, loop: WorkloadLoop) -> None:
        """Write a line for the epoch, and the weights after the last one."""
        if not loop.processes.is_first:
            return
        at = loop.state
        line = {
            "epoch": at.epoch,
            "steps": at.steps,
            "examples": at.examples,
            "seconds": round(at.seconds, 3),
            "batch_size": at.batch_size,
            "micro_batch_size": loop.micro_batch_size,
            **at.metrics,
        }
        self._append(HISTORY, line)
        if at.epoch == loop.plan.epochs:
            torch.save(loop.model.state_dict(), self._folder / WEIGHTS)

    def on_event(self, loop: WorkloadLoop, event: Event) -> None:
        """Write a line for the event, and log it."""
        log_event(event)
        self._append(EVENTS, event.to_dict())

    def _append(self, name: str, line: dict[str, Any]) -> None:
        with (self._folder / name).open("a") as file:
            file.write(to_json(line) + "\n")

    def _keep(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        path = self._folder / name
        if path.exists():
            kept = []
            for line in path.read_text(errors="replace").splitlines():
                with suppress(ValueError, KeyError, TypeError):  # half a line, after a kill
                    if wanted(json.loads(line)):
                        kept.append(f"{line}\n")
            path.write_text("".join(kept))
