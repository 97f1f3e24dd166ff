"""Checkpoint files, written atomically: a kill at any moment leaves the last one intact."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from rightbatch._errors import UsageError

NAME = "last.pt"
SHARE = 0.05
"""Largest share of the time for checkpoints: large ones are written less often."""


class Checkpoints:
    """Writes `last.pt` into a folder, at most every `every` seconds; 0: after every step."""

    def __init__(self, folder: Path, every: float) -> None:
        self._path = folder / NAME
        self._every = every
        self._due = time.perf_counter() + every

    @property
    def exist(self) -> bool:
        return self._path.is_file()

    @property
    def is_due(self) -> bool:
        return time.perf_counter() >= self._due

    def write(self, state: dict[str, Any]) -> None:
        """Replace the last checkpoint atomically."""
        started = time.perf_counter()
        partial = self._path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)
        ended = time.perf_counter()
        self._due = ended + (max(self._every, (ended - started) / SHARE) if self._every else 0)

    def read(self) -> dict[str, Any]:
        """Return the last checkpoint, with its tensors on the CPU.

        Raises:
            UsageError: if there is none.
        """
        if not self.exist:
            raise UsageError(
                f"there is nothing to resume in {self._path.parent}: {NAME} does not exist"
            )
        # States of schedules contain arbitrary objects; this program wrote the file.
        state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=False)
        return state

    def asked(self) -> dict[str, Any]:
        """Return the settings that the training was started with.

        Raises:
            UsageError: if there is no checkpoint.
        """
        asked: dict[str, Any] = self.read()["asked"]
        return asked

    def read_same(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the last checkpoint if it belongs to the training with the settings `asked`.

        Raises:
            UsageError: if there is none, or it belongs to another training.
        """
        state = self.read()
        was = state["asked"]
        differing = [key for key in asked if was.get(key) != asked[key]]
        if differing:
            said = ", ".join(f"{key} was {was.get(key)}, not {asked[key]}" for key in differing)
            raise UsageError(f"{self._path.parent} holds another training: {said}")
        return state
