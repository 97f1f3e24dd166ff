"""Where a training stands, written so that a kill at any moment leaves the last one whole."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from rightbatch._errors import UsageError

NAME = "last.pt"
SHARE = 0.05
"""At most this share of the time goes into checkpoints: a large one is written less often."""


class Checkpoints:
    """Writes `last.pt` into a folder, every `every` seconds at most; after every step with 0."""

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
        """Replace the last checkpoint by this one, in one step of the file system."""
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
        """The last checkpoint, on the CPU.

        Raises:
            UsageError: if there is none.
        """
        if not self.exist:
            raise UsageError(f"there is nothing to resume in {self._path.parent}: no {NAME}")
        # Schedules keep objects of their own in their state; the file is this program's.
        state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=False)
        return state

    def asked(self) -> dict[str, Any]:
        """What the training was begun with. Raises UsageError if there is none."""
        asked: dict[str, Any] = self.read()["asked"]
        return asked

    def read_same(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The last checkpoint, of the training that `asked` describes.

        Raises:
            UsageError: if there is none, or it is of another training.
        """
        state = self.read()
        was = state["asked"]
        differing = [key for key in asked if was.get(key) != asked[key]]
        if differing:
            said = ", ".join(f"{key} was {was.get(key)}, not {asked[key]}" for key in differing)
            raise UsageError(f"{self._path.parent} holds another training: {said}")
        return state
