"""Protects files of the user's: a trial ends before it changes, replaces or removes one.

Python reports each open, rename and removal to audit hooks. Writers in native code are not seen,
except `torch.save`, which is checked as well.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .settings import Settings

_IGNORED = ("__pycache__", f"{os.sep}.cache{os.sep}", ".lock")
_CACHE = ".cache"  # the end of a data set's cache, which Ultralytics and others write anew
_DEVICES = ("/dev/", "/proc/", "/sys/")
_WRITES = os.O_WRONLY | os.O_RDWR


class Guard:
    """Knows which files existed before the trial, and ends it if one is to be changed."""

    def __init__(self, settings: Settings) -> None:
        self._started_at = settings.started_at
        allowed = tuple(os.path.realpath(folder) + os.sep for folder in settings.folders)
        self._allowed = (*allowed, *_DEVICES)
        self._is_checking = False

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at an audit event; those that change no file return at once."""
        if event == "open":
            path, mode, flags = arguments
            if flags & _WRITES if isinstance(flags, int) else "w" in (mode or ""):
                self.check(path)
        elif event == "os.rename":
            self.check(arguments[0])
            self.check(arguments[1], temporary=arguments[0])
        elif event in ("os.remove", "os.truncate"):
            if event == "os.truncate" or arguments[1] in (-1, None):  # else relative to a folder
                self.check(arguments[0])
        elif event == "shutil.rmtree":
            self.check(arguments[0])

    def check(self, path: Any, *, temporary: Any = None) -> None:
        """End the trial if the file, or one in the folder, existed before it began.

        The new content that was to replace it is removed, since nothing of the script runs after.
        """
        if self._is_checking or not isinstance(path, (str, bytes, os.PathLike)):
            return
        self._is_checking = True
        try:
            name = os.path.realpath(os.fsdecode(path))
            found = self._of_the_user(name)
            if found is not None:
                from .connection import report

                self._remove_own(temporary)
                report(event="would_overwrite", path=found)
                os._exit(1)
        except OSError:
            return  # it does not exist
        finally:
            self._is_checking = False

    def _of_the_user(self, name: str) -> str | None:
        """Return the path of a file that existed before the trial; None if there is none."""
        if name.startswith(self._allowed) or name.endswith(_CACHE):
            return None
        if any(part in name for part in _IGNORED):
            return None
        if os.path.isdir(name):
            files = (os.path.join(at, file) for at, _, names in os.walk(name) for file in names)
            return next(filter(self._is_older, files), None)
        return name if os.path.isfile(name) and self._is_older(name) else None

    def _remove_own(self, path: Any) -> None:
        """Remove a file that the trial has made."""
        try:
            if os.path.isfile(path) and not self._is_older(path):
                os.remove(path)
        except (OSError, TypeError):
            pass

    def _is_older(self, name: str) -> bool:
        # Any change sets a file's ctime, so one that the trial has made itself is newer.
        return os.stat(name).st_ctime < self._started_at


_guards: list[Guard] = []


def protect(settings: Settings) -> None:
    """Install the guard; it cannot be removed."""
    guard = Guard(settings)
    _guards.append(guard)
    sys.addaudithook(guard.on_event)


def protect_saving(torch: Any) -> None:
    """Check the path of `torch.save`, which writes in native code."""
    save = torch.save

    def checked_save(obj: Any, f: Any, *arguments: Any, **keywords: Any) -> Any:
        for guard in _guards:
            guard.check(f)
        return save(obj, f, *arguments, **keywords)

    torch.save = checked_save
