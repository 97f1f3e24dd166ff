"""Checkpoint files, written atomically: a kill at any moment leaves the last one intact.

A checkpoint may be in a folder that somebody else wrote, so nothing in it is executed: it is read
with `weights_only=True`, and what that does not read is refused when it is written.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
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
        """Replace the last checkpoint atomically.

        Raises:
            UsageError: if it cannot be written, or holds objects that `read` would refuse.
        """
        started = time.perf_counter()
        partial = self._path.with_suffix(".partial")
        try:
            partial.unlink(missing_ok=True)  # of a training that was killed, or a link to elsewhere
            # "x" does not follow a link that is made meanwhile.
            with partial.open("xb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            self._check_written(partial)
            partial.replace(self._path)
        except OSError as error:
            raise UsageError(
                f"cannot write the checkpoint {self._path}: {error.strerror or error}"
            ) from error
        ended = time.perf_counter()
        self._due = ended + (max(self._every, (ended - started) / SHARE) if self._every else 0)

    def read(self) -> dict[str, Any]:
        """Return the last checkpoint, with its tensors on the CPU; nothing in it is executed.

        Raises:
            UsageError: if there is none, or the file is not a checkpoint of `train`.
        """
        if not self.exist:
            raise UsageError(
                f"there is nothing to resume in {self._path.parent}: {NAME} does not exist"
            )
        try:
            with torch.serialization.safe_globals(_numpy_globals()):
                state = torch.load(self._path, map_location="cpu", weights_only=True)
        except Exception as error:  # the unpickler raises many types for a damaged file
            raise self.mismatch_error(_reason(error)) from error
        for key in ("asked", "loop", "observers", "random"):
            if not isinstance(state, dict) or not isinstance(state.get(key), dict):
                raise self.mismatch_error(f"it has no {key!r}")
        return state  # type: ignore[no-any-return]

    def mismatch_error(self, reason: str) -> UsageError:
        """Return the error of a file that is not a checkpoint of the training to resume."""
        return UsageError(
            f"{self._path} is not a checkpoint that `rightbatch train` wrote for this training, or "
            f"it is damaged: {reason}; train again with another --out"
        )

    def settings(self) -> dict[str, Any]:
        """Return the settings that the training was started with.

        Raises:
            UsageError: if there is no checkpoint, or it is not one of `train`.
        """
        settings: dict[str, Any] = self.read()["asked"]
        if not isinstance(settings.get("batch_size"), int):
            raise self.mismatch_error(f"its batch size is {settings.get('batch_size')!r:.100}")
        return settings

    def read_same(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the last checkpoint if it belongs to the training with these `settings`.

        Raises:
            UsageError: if there is none, or a setting differs: the batch size, `adapt`, the number
                of examples in an epoch, the seed, or `drop_last`.
        """
        state = self.read()
        was = state["asked"]
        differing = [key for key in settings if was.get(key) != settings[key]]
        if differing:
            changes = ", ".join(
                f"{key} was {was.get(key)}, not {settings[key]}" for key in differing
            )
            raise UsageError(
                f"{self._path.parent} holds another training: {changes}. Resume it with the "
                "settings it was started with, or train with another --out"
            )
        return state

    def _check_written(self, path: Path) -> None:
        with torch.serialization.safe_globals(_numpy_globals()):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if unsafe:
            path.unlink()
            raise UsageError(
                f"the training's state has objects that a checkpoint does not store: "
                f"{', '.join(sorted(unsafe))}; return numbers, text, lists, dicts and tensors from "
                "`state_dict()` of the schedule, the optimizer and the model"
            )


def make_folder(folder: Path) -> None:
    """Make the folder of a training.

    Raises:
        UsageError: if that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {folder}: {error.strerror}; choose another --out"
        ) from error


def refuse_links(paths: Iterable[Path]) -> None:
    """Refuse files that are links or devices: what is written to them would be elsewhere.

    Raises:
        UsageError: if a path exists and is not a regular file.
    """
    for path in paths:
        try:
            is_regular = stat.S_ISREG(path.lstat().st_mode)
        except OSError:  # it does not exist
            continue
        if not is_regular:
            raise UsageError(
                f"{path} is a link or not a regular file; remove it, or choose another --out"
            )


def _numpy_globals() -> list[Any]:
    """Return what pickles of NumPy arrays and numbers need besides what torch allows."""
    try:
        import numpy
    except ImportError:  # torch works without it
        return []
    numeric = "bBhHiIlLqQefdgFDG?SU"
    kinds = {type(numpy.dtype(code)) for code in numeric}
    reconstruct = numpy.empty(0).__reduce__()[0]
    scalar = numpy.float64().__reduce__()[0]
    named = [
        (found, f"{package}.multiarray.{name}")  # before and since NumPy 2
        for package in ("numpy.core", "numpy._core")
        for found, name in ((reconstruct, "_reconstruct"), (scalar, "scalar"))
    ]
    return [numpy.ndarray, numpy.dtype, *kinds, *named]


def _reason(error: BaseException) -> str:
    """Return the first line of torch's message that says what is wrong, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), None)
    return (told or (lines[0] if lines else type(error).__name__))[:300]
